"""The protocol, clause by clause, over real sockets against a real gateway.

Each file has one table for a section of the specification. A row says which clause it checks, in
short; most are one request and the answer to it, the others small scenarios.
"""
