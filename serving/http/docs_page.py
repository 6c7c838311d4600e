"""The page at ``/docs``: the OpenAPI description for people, without a script."""

from __future__ import annotations

from html import escape
from typing import Any

from serving.http.openapi import openapi

_EXAMPLES = {
    "/v1/segment": (
        "curl -F image=@photo.jpg {server}/v1/segment -o mask.png",
        "curl --data-binary @photo.jpg '{server}/v1/segment?output=json'",
        "curl --data-binary @photo.jpg '{server}/v1/segment?output=explain&x=120&y=80'",
    ),
    "/v1/segment/batch": ("curl -F image=@a.jpg -F image=@b.jpg '{server}/v1/segment/batch?output=json'",),
    "/v1/model": ("curl {server}/v1/model",),
    "/predict": (
        """printf '{{"instances": [{{"b64": "%s"}}]}}' "$(base64 -w0 photo.jpg)" """
        "| curl -H 'content-type: application/json' -d @- {server}/predict",
    ),
    "/invocations": (
        "curl -H 'content-type: image/jpeg' --data-binary @photo.jpg {server}/invocations -o mask.png",
    ),
}
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>protoseg: HTTP interface</title>
<link rel="stylesheet" href="demo/app.css">
</head>
<body class="docs">
<header><h1><span class="mark" aria-hidden="true"></span>protoseg</h1><p>HTTP interface</p></header>
<main>
<p>Send an image, get a mask. <a href="./">Try it on the page</a>, or read the machine-readable description at
<a href="openapi.json">openapi.json</a>. If keys are configured, send one as
<code>Authorization: Bearer KEY</code> or <code>X-API-Key: KEY</code>.</p>
"""


def _parameter(item: dict[str, Any]) -> str:
    schema = item["schema"]
    values = ", ".join(map(str, schema.get("enum", ())))
    if "minimum" in schema:
        values = f"{schema['minimum']:g} to {schema['maximum']:g}"
    default = f"; default {schema['default']}" if "default" in schema else ""
    text = item.get("description", "part of the path" if item["in"] == "path" else "")
    return (
        f"<tr><th scope=row><code>{escape(item['name'])}</code></th>"
        f"<td>{escape(values or schema.get('type', ''))}{escape(default)}</td><td>{escape(text)}</td></tr>"
    )


def _operation(path: str, method: str, operation: dict[str, Any], server: str) -> str:
    parts = [
        f"<section><h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}. "
    ]
    if "description" in operation:
        parts.append(escape(operation["description"]))
    parts.append("</p>")
    for example in _EXAMPLES.get(path, ()):
        parts.append(f"<pre>{escape(example.format(server=server))}</pre>")
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        parts.append(f"<p>Takes {escape(', '.join(body))}.</p>")
    parts.append(f"<p>Answers {escape(', '.join(operation['responses']['200']['content']))}.</p>")
    if operation["parameters"]:
        rows = "".join(map(_parameter, operation["parameters"]))
        parts.append(f"<details><summary>Parameters</summary><table>{rows}</table></details>")
    errors = "".join(
        f"<tr><th scope=row>{status}</th><td>{escape(answer['description'])}</td></tr>"
        for status, answer in operation["responses"].items()
        if status != "200"
    )
    parts.append(f"<details><summary>Errors</summary><table>{errors}</table></details></section>")
    return "".join(parts)


def docs_html(server: str) -> bytes:
    """The page.

    Args:
        server: Address that the examples call, as the client wrote it.
    """
    sections = [
        _operation(path, method, operation, server)
        for path, methods in openapi()["paths"].items()
        for method, operation in methods.items()
    ]
    return f"{_HEAD}{''.join(sections)}</main></body></html>".encode()
