# The archive in one image: as an ordinary user, with its data in /data.
#   docker build -t matrix-media-archiver .
#   docker run -v archive:/data -p 29340:29340 -p 127.0.0.1:29341:29341 matrix-media-archiver
FROM python:3.13-slim AS build
WORKDIR /src
COPY constraints/archiver.txt constraints/
COPY pyproject.toml README.md LICENSE ./
COPY archiver archiver
COPY migrations migrations
RUN python -m venv /opt/archiver \
 && /opt/archiver/bin/pip install --no-cache-dir -c constraints/archiver.txt .

FROM python:3.13-slim
RUN useradd --system --uid 29340 --home-dir /data --create-home archiver
COPY --from=build /opt/archiver /opt/archiver
ENV PATH=/opt/archiver/bin:$PATH PYTHONUNBUFFERED=1
USER archiver
WORKDIR /data
VOLUME /data
# Synapse pushes to the first, readers ask the second.
EXPOSE 29340 29341
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD \
  ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:29341/healthz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["archiver"]
CMD ["run", "-c", "/data/config.yaml"]
