"""System calls that the server makes once it serves, by what asks for them."""

CALLS: dict[str, tuple[str, ...]] = {
    "base": ("read", "write"),
    "dev": (),
    "write": (),
    "xattr": (),
    "pyfuse3": (),
    "vhost": (),
    "watch": (),
}
