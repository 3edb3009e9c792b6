"""Every statement on the engine's tables, as writes that commit whole.

Each write that changes a running operation carries the epoch under which it was claimed (the
fencing token) and changes nothing when the operation has moved on.
"""
