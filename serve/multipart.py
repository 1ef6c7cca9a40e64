"""The body of a form with files, multipart/form-data (RFC 7578), as its fields' bytes by name.

The body is there already, and its length is bounded (`limits.py`). Here its parts are, too.
"""

from email.message import Message
from email.parser import BytesHeaderParser
from email.policy import HTTP

from actvar.errors import shown
from actvar.serve.refusals import Refusal

_MAX_PARTS = 32
_MAX_HEAD = 4096  # bytes of what stands before a part's content


def form_fields(content_type: str, body: bytes) -> dict[str, bytes]:
    """The fields of a form.

    Args:
        content_type: the header's value, which names the boundary.
        body: all of it.

    Raises:
        Refusal: it is no such form, is cut short, has too many parts, or a field twice.
    """
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_boundary()
    if header.get_content_type() != "multipart/form-data" or not boundary:
        raise Refusal(415, "The body must be a form, multipart/form-data with a boundary.", code="invalid_content_type")
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
    _, *parts = (b"\r\n" + body).split(delimiter, _MAX_PARTS + 1)
    if not parts or not parts[-1].startswith(b"--"):
        many = f"has more than {_MAX_PARTS} parts" if len(parts) > _MAX_PARTS else "is cut short, or no form"
        raise Refusal(400, f"The body {many}.", code="invalid_form")
    fields: dict[str, bytes] = {}
    for part in parts[:-1]:
        name, content = _field(part)
        if name in fields:
            raise Refusal(400, f"The field {shown(name, 40)} is there twice.", shown(name, 40), "invalid_form")
        fields[name] = content
    return fields


def _field(part: bytes) -> tuple[str, bytes]:
    """Name and content of a part, which begins behind its delimiter."""
    head, gap, content = part.partition(b"\r\n\r\n")
    if not gap or len(head) > _MAX_HEAD:
        raise Refusal(400, "A part of the form has no head, or a long one.", code="invalid_form")
    headers = BytesHeaderParser(policy=HTTP).parsebytes(head.lstrip(b" \t").removeprefix(b"\r\n") + b"\r\n\r\n")
    try:
        name = headers["content-disposition"].params["name"]
    except (AttributeError, KeyError):
        raise Refusal(400, "A part of the form has no name.", code="invalid_form") from None
    return str(name), content
