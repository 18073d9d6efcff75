"""Server-sent events from bytes as they come, without I/O.

The format is that of the HTML standard, 9.2.6: UTF-8 lines that end with CR, LF or CRLF, an
event ends with an empty line, and an event that never ends is none.
"""

from __future__ import annotations

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventTooLargeError(ValueError):
    """An event has more bytes than may be held."""


class EventDecoder:
    """Finds the ``data`` of events, however the bytes are split.

    Args:
        most_bytes: the most that one event may have.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._ended_with_return = False
        self._is_first_line = True

    def feed(self, received: bytes) -> list[str]:
        """The data of each event that these bytes complete.

        Raises:
            EventTooLargeError: before more than ``most_bytes`` are held.
            UnicodeDecodeError: data is not UTF-8.

        >>> decoder = EventDecoder(most_bytes=1000)
        >>> decoder.feed(b"data: 1\\n")
        []
        >>> decoder.feed(b"\\n: a comment\\r\\ndata: 2\\r\\ndata: 3\\r\\n\\r\\n")
        ['1', '2\\n3']
        """
        if self._ended_with_return and received.startswith(b"\n"):
            received = received[1:]
            self._ended_with_return = False
        if not received:
            return []
        # A CR at the end may be the first half of a CRLF: its LF is dropped when it comes.
        self._ended_with_return = received.endswith(b"\r")
        lines = received.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        events = []
        for line in lines[:-1]:
            self._hold(len(line))
            event = self._end_line(bytes(self._line) + line if self._line else line)
            self._line.clear()
            if event is not None:
                events.append(event)
        self._hold(len(lines[-1]))
        self._line += lines[-1]
        return events

    def _hold(self, size: int) -> None:
        self._size += size
        if self._size > self._most_bytes:
            raise EventTooLargeError(f"an event has more than {self._most_bytes} bytes")

    def _end_line(self, line: bytes) -> str | None:
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
            return None
        data, self._data, self._size = self._data, [], 0
        return b"\n".join(data).decode() if data else None
