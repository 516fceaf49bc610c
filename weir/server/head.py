"""Bounds the head of a request. uvicorn's parser accepts a head of any size and copies it as it
grows, while streams wait."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LIMIT = 65536  # bytes of a head, of trailers, and of anything else outside the body


class BoundedHead(HttpToolsProtocol):
    """uvicorn's HTTP protocol; it answers 400 to a longer head and closes the connection."""

    head = 0  # bytes since the last event of the parser

    def data_received(self, data: bytes) -> None:
        self.head += len(data)
        super().data_received(data)
        if self.head > LIMIT and not self.transport.is_closing():
            self.send_400_response(f"The head of a request may have {LIMIT} bytes.")

    def on_headers_complete(self) -> None:
        self.head = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.head = 0
        super().on_message_complete()
