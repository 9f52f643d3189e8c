"""Files with a script in them, which tries every way to be noticed."""

from __future__ import annotations

from typing import NamedTuple

# A policy may shut one way and leave another open.
_SCRIPT = """\
console.log('$CANARY'); document.title = '$CANARY';
for (const page of [parent, top]) page.postMessage('$CANARY', '*');
new Image().src = '$CANARY?image'; fetch('$CANARY?fetch', {mode: 'no-cors'}).catch(() => 0);
"""
_SVG = f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="60" height="40" onload="{_SCRIPT}">
<script><![CDATA[{_SCRIPT}]]></script><rect width="60" height="40" fill="red"/>
<foreignObject width="9" height="9"><img xmlns="http://www.w3.org/1999/xhtml" src="x"
onerror="{_SCRIPT}"/></foreignObject></svg>
"""
_HTML = f'<!doctype html><body onload="{_SCRIPT}"><script>{_SCRIPT}</script><p>Words</p>'
_PDF = f"""\
%PDF-1.4
1 0 obj << /Type /Catalog /Pages 2 0 R /OpenAction 4 0 R >> endobj
2 0 obj << /Type /Pages /Kids [3 0 R] /Count 1 >> endobj
3 0 obj << /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >> endobj
4 0 obj << /S /JavaScript /JS ({_SCRIPT} app.launchURL\\("$CANARY"\\);) >> endobj
trailer << /Root 1 0 R >>
"""


class Scripted(NamedTuple):
    """A file, the type its sender declares, and whether a browser runs it if nothing forbids."""

    text: str
    declared: str
    runs: bool = False

    def calling(self, canary: str) -> bytes:
        """The file, whose script asks for this address."""
        return self.text.replace("$CANARY", canary).encode()


SCRIPTED = {
    "svg": Scripted(_SVG, "image/svg+xml", runs=True),
    "html": Scripted(_HTML, "text/html", runs=True),
    "xhtml": Scripted(_SVG, "application/xhtml+xml", runs=True),
    "xml": Scripted(_SVG, "text/xml", runs=True),
    "html-as-png": Scripted(_HTML, "image/png"),
    "html-as-text": Scripted(_HTML, "text/plain"),
    "svg-as-png": Scripted(_SVG, "image/png"),
    "pdf": Scripted(_PDF, "application/pdf"),  # this browser has no viewer for it
}
