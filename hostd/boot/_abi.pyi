from typing import Any

class _Lib:
    GUEST_ABI_MAGIC: int
    GUEST_ABI_VERSION: int
    GUEST_PORT_FAULT: int
    GUEST_PORT_CALL: int
    GUEST_PORT_DOORBELL: int
    GUEST_CALL_PAGE: int
    GUEST_SYSTEM_PAGE: int
    GUEST_FAULT_STACK: int
    GUEST_TABLES: int
    GUEST_INFO: int
    GUEST_INFO_SIZE: int
    GUEST_IMAGE: int
    GUEST_PLUGS: int
    GUEST_PLUGS_SIZE: int
    GUEST_PLUGS_MOST: int
    GUEST_PLUG_MEMORY: int
    GUEST_PLUG_REGION: int
    GUEST_PLUG_FRAMEBUFFER: int
    GUEST_PLUG_READ_ONLY: int
    GUEST_PLUG_RAW: int
    GUEST_PLUG_WANTED: int
    GUEST_CALL_GIVE_UP: int
    GUEST_CALL_EXIT: int
    GUEST_CALL_CONSOLE: int
    GUEST_CALL_REPORT: int
    GUEST_CALL_TIME: int
    GUEST_CALL_FENCE: int
    GUEST_CALL_WAIT: int
    GUEST_REPORT_INT: int
    GUEST_REPORT_FLOAT: int
    GUEST_REPORT_TEXT: int
    GUEST_OK: int
    GUEST_EINVAL: int
    GUEST_CALL_DATA: int
    GUEST_NAME_SIZE: int
    GUEST_READ_ONLY: int
    GUEST_RAW: int
    GUEST_ROLE_SEND: int
    GUEST_ROLE_RECEIVE: int
    GUEST_ROLE_JOIN: int

class _Ffi:
    def new(self, cdecl: str, init: Any = ...) -> Any: ...
    def cast(self, cdecl: str, value: Any) -> Any: ...
    def buffer(self, cdata: Any, size: int = ...) -> Any: ...
    def sizeof(self, cdecl: Any) -> int: ...
    def offsetof(self, cdecl: str, *fields: str) -> int: ...
    def string(self, cdata: Any, maxlen: int = ...) -> bytes: ...

lib: _Lib
ffi: _Ffi
