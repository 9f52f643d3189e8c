"""The tables' SQL, one module a group. Every function takes the connection first, so that the
caller owns the transaction."""
