"""What can go wrong between the gateway and its database.

```
NexusError
└─ DatabaseError
   ├─ InvalidDatabaseUrl   the --database setting cannot be used
   ├─ DatabaseInUse        another gateway serves the same SQLite file
   ├─ DatabaseClosed       a write came after the store began to close
   └─ DatabaseUnavailable  the server cannot be reached: nothing was written
      └─ OutcomeUnknown    the connection was lost during COMMIT: it may have been written
```
"""

from nexus_spec import NexusError


class DatabaseError(NexusError):
    """The database cannot do what was asked; the message says why and what to do."""


class InvalidDatabaseUrl(DatabaseError):
    """The database setting is no URL that this gateway can open."""


class DatabaseInUse(DatabaseError):
    """Another process serves the same SQLite file."""


class DatabaseClosed(DatabaseError):
    """The store is closing and takes no more writes."""


class DatabaseUnavailable(DatabaseError):
    """The server cannot be reached, or the connection to it was lost; nothing was written."""


class OutcomeUnknown(DatabaseUnavailable):
    """The connection was lost while a commit was under way: it may have happened or not."""
