"""Programs that leave a sandbox, or leave something in it for the programs that come later.

Each defines `f`, which returns 'done' once the harm is done, and raises or returns something else
where it is not. All harm is to the sandbox, its processes, or what a test made.
"""

import textwrap

# Found by name in every program below.
PRELUDE = """
import ctypes, os, struct, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.shmat.restype = ctypes.c_void_p
MARK = b'mark of an earlier program'
FAILED = (None, 2**64 - 1)
def must(result):
    if result in (None, -1, 2**64 - 1):
        raise OSError(ctypes.get_errno(), 'refused')
    return result
def key_of(ring):
    return must(libc.syscall(250, 10, ring, b'user', b'mark%d' % KEY, 0))
def others():
    return [pid for pid in (os.getppid(), JUDGE, 1) if pid > 0 and pid != os.getpid()]
"""

# Harm that one program does alone.
ESCAPES = {
    "map a descriptor writable and shared": """
        for fd in range(64):
            if libc.mmap(None, ctypes.c_size_t(4096), 3, 1, fd, ctypes.c_long(0)) not in FAILED:
                return 'done'
        """,
    "truncate a descriptor": """
        for fd in range(64):
            if libc.ftruncate(fd, ctypes.c_long(0)) == 0:
                return 'done'
        """,
    "open a descriptor's file again": """
        for fd in range(64):
            for folder in ('/proc/self/fd', '/dev/fd'):
                try:
                    os.open(f'{folder}/{fd}', os.O_RDWR)
                    return 'done'
                except OSError:
                    pass
        """,
    "find a descriptor that is no pipe": """
        for fd in range(64):
            try:
                if (os.fstat(fd).st_mode & 0o170000) != 0o010000:
                    return 'done'
            except OSError:
                pass
        """,
    "write into a terminal": """
        for fd in range(64):
            if libc.ioctl(fd, 0x5412, ctypes.c_char_p(b'x')) == 0:
                return 'done'
        os.open('/dev/tty', os.O_RDWR)
        return 'done'
        """,
    "write another process's memory": """
        word = ctypes.create_string_buffer(8)
        vector = struct.pack('QQ', ctypes.addressof(word), 8)
        for pid in others():
            for address in (0x400000, 0x10000, ctypes.addressof(word)):
                there = struct.pack('QQ', address, 8)
                for call in (310, 311):
                    if libc.syscall(call, pid, vector, 1, there, 1, 0) >= 0:
                        return 'done'
            if libc.ptrace(16, pid, 0, 0) == 0:
                return 'done'
        """,
    "open another process's memory": """
        for pid in others():
            for name in ('mem', 'environ', 'cmdline', 'maps', 'root', 'cwd'):
                try:
                    os.stat(f'/proc/{pid}/{name}/.')
                    return 'done'
                except OSError:
                    pass
                try:
                    open(f'/proc/{pid}/{name}', 'rb').read(1)
                    return 'done'
                except OSError:
                    pass
        """,
    "take another process's descriptors": """
        for pid in others():
            pidfd = libc.syscall(434, pid, 0)
            for fd in range(16):
                if pidfd >= 0 and libc.syscall(438, pidfd, fd, 0) >= 0:
                    return 'done'
        """,
    "signal another process": """
        for pid in others():
            if libc.kill(pid, 0) == 0 or libc.kill(-pid, 0) == 0:
                return 'done'
        """,
    "limit another process": """
        low = struct.pack('QQ', 1 << 20, 1 << 20)
        for pid in others():
            if libc.prlimit(pid, 8, low, None) == 0:
                return 'done'
        """,
    "slow another process down": """
        mask = struct.pack('Q', 1)
        for pid in others():
            if libc.setpriority(0, pid, 5) == 0 or libc.sched_setaffinity(pid, 8, mask) == 0:
                return 'done'
        """,
    "become powerful in a user namespace": """
        must(libc.unshare(0x10000000))
        return 'done'
        """,
    "start a process in a user namespace": """
        must(libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0))
        return 'done'
        """,
    "start a thread of the kernel": """
        parameters = ctypes.create_string_buffer(struct.pack('6I', 0, 0, 2, 0, 1, 0) + bytes(96))
        must(libc.syscall(425, 4, parameters))
        return 'done'
        """,
    "mount": """
        must(libc.mount(b'none', b'/', b'tmpfs', 0, None))
        return 'done'
        """,
    "remount for writing": """
        must(libc.mount(b'none', b'/', None, 32 | 4096, None))
        return 'done'
        """,
    "leave the root": """
        os.chroot('/usr')
        return 'done'
        """,
    "open a file by its handle": """
        handle = ctypes.create_string_buffer(struct.pack('Ii', 8, 1) + struct.pack('II', 2, 0))
        must(libc.open_by_handle_at(3, handle, 0))
        return 'done'
        """,
    "write below every folder": """
        import sys
        for folder in ('/', '/tmp', '/dev/shm', '/var/tmp', '/run', '/inner', '/proc', *sys.path):
            for step in (
                lambda: os.close(os.open(f'{folder}/mark', os.O_WRONLY | os.O_CREAT)),
                lambda: os.open(folder, os.O_WRONLY | os.O_TMPFILE),
                lambda: os.mkdir(f'{folder}/mark'),
                lambda: os.mkfifo(f'{folder}/mark'),
                lambda: os.symlink('x', f'{folder}/mark'),
                lambda: os.utime(folder),
                lambda: os.chmod(folder, 0o755),
                lambda: os.setxattr(folder, 'user.mark', b'x'),
            ):
                try:
                    step()
                    return 'done'
                except OSError:
                    pass
        """,
    "change the library": """
        import sys
        for name in (os.__file__, struct.__file__, sys.executable):
            for step in (
                lambda: os.open(name, os.O_RDWR),
                lambda: os.utime(name),
                lambda: os.chmod(name, 0o644),
                lambda: os.rename(name, name + '~'),
                lambda: os.link(name, name + '~'),
            ):
                try:
                    step()
                    return 'done'
                except OSError:
                    pass
        """,
    "read the environment of the judge": """
        if 'SANDBOX_TEST' in os.environ:
            return 'done'
        """,
}

# Marks: what leaves one, what finds it in a later program, and what removes it.
MARKS = {
    "shared memory": (
        "where = must(libc.shmat(must(libc.shmget(KEY, 4096, 0o1666)), None, 0))\n"
        "ctypes.memmove(where, MARK, len(MARK))",
        "where = must(libc.shmat(must(libc.shmget(KEY, 4096, 0)), None, 0))\n"
        "assert ctypes.string_at(where, len(MARK)) == MARK",
        "must(libc.shmctl(must(libc.shmget(KEY, 4096, 0)), 0, None))",
    ),
    "a message queue": (
        "must(libc.msgget(KEY, 0o1666))",
        "must(libc.msgget(KEY, 0))",
        "must(libc.msgctl(must(libc.msgget(KEY, 0)), 0, None))",
    ),
    "a semaphore": (
        "must(libc.semget(KEY, 1, 0o1666))",
        "must(libc.semget(KEY, 1, 0))",
        "must(libc.semctl(must(libc.semget(KEY, 1, 0)), 0, 0))",
    ),
    "a key of the user": (
        "must(libc.syscall(248, b'user', b'mark%d' % KEY, MARK, len(MARK), -4))",
        "key_of(-4)",
        "must(libc.syscall(250, 9, key_of(-4), -4))",
    ),
    "a key of the session": (
        "must(libc.syscall(248, b'user', b'mark%d' % KEY, MARK, len(MARK), -3))",
        "key_of(-3)",
        "must(libc.syscall(250, 9, key_of(-3), -3))",
    ),
    "a file in memory": (
        "os.mknod(f'/dev/shm/mark{KEY}')",
        "os.stat(f'/dev/shm/mark{KEY}')",
        "os.remove(f'/dev/shm/mark{KEY}')",
    ),
    "a temporary file": (
        "os.mknod(f'/tmp/mark{KEY}')",
        "os.stat(f'/tmp/mark{KEY}')",
        "os.remove(f'/tmp/mark{KEY}')",
    ),
}

# Needs a socket to the host of a virtual machine, which only seccomp refuses.
HOST_SOCKET = "import socket\nsocket.socket(40, socket.SOCK_STREAM)\nreturn 'done'"

# Stays alive after its judgement, by what would otherwise end it.
OUTLIVES = """
for _ in range(3):
    libc.setsid()
    libc.setpgid(0, 0)
    libc.prctl(1, 0, 0, 0, 0)
    for number in range(1, 65):
        libc.signal(number, ctypes.c_void_p(1))
while True:
    time.sleep(0.05)
"""


def program(body, *, judge, key=0):
    """Return the source of a program whose `f` is the body, and returns 'done' at its end."""
    lines = textwrap.indent(textwrap.dedent(body), "    ")
    given = f"JUDGE, KEY = {judge}, {key}\n"
    return f"{PRELUDE}{given}def f():\n{lines}\n"
