"""The commands of `nexus-gateway`, one file each."""
