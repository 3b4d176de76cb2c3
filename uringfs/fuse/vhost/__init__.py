"""vhost-user-fs: FUSE from the virtqueues of a virtual machine (virtio 1.2, 5.11)."""
