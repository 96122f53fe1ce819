#!/usr/bin/env python3
"""Carries connections across network namespaces, through a socket in the file system.

    relay.py LISTEN CONNECT    each a path, or HOST:PORT

The tests' engine has a network namespace of its own, from which its containers don't reach the tests' broker.
"""

import pathlib
import socket
import sys
import threading


def opened(address):
    if address.startswith("/"):
        return socket.socket(socket.AF_UNIX), address
    host, port = address.rsplit(":", 1)
    return socket.socket(socket.AF_INET), (host, int(port))


def carry(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def main():
    listener, address = opened(sys.argv[1])
    if isinstance(address, str):
        pathlib.Path(address).unlink(missing_ok=True)
    else:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen()
    while True:
        ours, _ = listener.accept()
        theirs, address = opened(sys.argv[2])
        try:
            theirs.connect(address)
        except OSError:
            ours.close()
            continue
        for pair in ((ours, theirs), (theirs, ours)):
            threading.Thread(target=carry, args=pair, daemon=True).start()


main()
