"""The site of a moderator's panel, in whose pages the media of an archive is shown."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from tests.support.process import LOOPBACK, free_port

# What isolates a page asks of all it embeds that it allows that, by CORP or by CORS.
# https://html.spec.whatwg.org/multipage/browsers.html#coep
ISOLATED = {
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Opener-Policy": "same-origin",
}
PAGE = """\
<!doctype html><title>panel</title><body><script>
const heard = []
addEventListener('message', event => heard.push(event.data))
const ending = {}
const place = (kind, url) => {
  const element = document.createElement(kind)
  for (const end of ['load', 'error'])
    element.addEventListener(end, () => { ending[kind + ' ' + url] = end })
  element[kind === 'object' ? 'data' : 'src'] = url
  document.body.append(element)
}
const shown = (element, event) => new Promise((resolve, reject) => {
  element.addEventListener(event, resolve)
  element.addEventListener('error', () => reject(new Error('it does not load')))
})
const pixels = (source, width, height, spots) => {
  const canvas = Object.assign(document.createElement('canvas'), {width, height})
  const drawing = canvas.getContext('2d')
  drawing.drawImage(source, 0, 0)
  return spots.map(([x, y]) => [...drawing.getImageData(x * width, y * height, 1, 1).data])
}
</script>
"""


class Panel:
    """Serves PAGE at `/` and, as an isolated page, at `/isolated`.

    `called` are the names of the canaries that somebody asked for.
    """

    def __init__(self) -> None:
        self.called: set[str] = set()
        self._port = free_port()
        self._files: dict[str, tuple[bytes, Mapping[str, str]]] = {}

    @property
    def url(self) -> str:
        """Not the host name of the archive: it is another site, and not only another origin."""
        return f"http://localhost:{self._port}"

    def canary(self, name: str) -> str:
        """An address that only a script would ask for."""
        return f"{self.url}/canary/{name}"

    def give(self, name: str, data: bytes, headers: Mapping[str, str]) -> str:
        """Serves a file with these headers alone; returns its URL."""
        self._files[name] = data, headers
        return f"{self.url}/files/{name}"

    async def __aenter__(self) -> Panel:
        app = web.Application()
        app.router.add_get("/", self._page)
        app.router.add_get("/isolated", self._page)
        app.router.add_get("/canary/{name}", self._canary)
        app.router.add_get("/files/{name}", self._file)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, LOOPBACK, self._port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _page(self, request: web.Request) -> web.Response:
        headers = ISOLATED if request.path == "/isolated" else None
        return web.Response(text=PAGE, content_type="text/html", headers=headers)

    async def _canary(self, request: web.Request) -> web.Response:
        self.called.add(request.match_info["name"])
        return web.Response()

    async def _file(self, request: web.Request) -> web.Response:
        data, headers = self._files[request.match_info["name"]]
        return web.Response(body=data, headers=headers)
