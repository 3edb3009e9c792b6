"""What tests over real sockets share: a gateway, a raw client, a recording callback receiver."""
