"""`database.url: embedded`: a PostgreSQL of our own, on a socket, under our supervision.

What the folder `database.data_dir` holds (mode 0700, nothing in it is anyone else's):

    lock                   flock: whoever holds it supervises the server
    password               of the role `archiver`
    run/                   the socket; a link to a temporary folder where the path is too long
    server.log             what PostgreSQL says
    18/                    its data, named by its major version
    postgresql-18.4/       a copy of its programs, where its user could not reach the original
"""

from archiver.db.embedded.account import reachable_data_dir
from archiver.db.embedded.supervisor import EmbeddedPostgres

__all__ = ["EmbeddedPostgres", "reachable_data_dir"]
