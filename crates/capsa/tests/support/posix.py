"""What POSIX says of files, tried in a directory: posix.py DIRECTORY [own-users].

With `own-users` the directory keeps the owners that a user of this system gives. Each case has a
directory of its own. All that fail are told; the last line is the number of those that passed.
"""
import ctypes, errno, fcntl, mmap, os, shutil, socket, stat, subprocess, sys, traceback

CASES = []
OWN_USERS = []
LIBC = ctypes.CDLL(None, use_errno=True)


def case(function):
    CASES.append(function)
    return function


def owners_case(function):
    OWN_USERS.append(function)
    return function


def fails(expected, function, *arguments, **named):
    try:
        result = function(*arguments, **named)
    except OSError as error:
        got = errno.errorcode[error.errno]
        assert got in expected.split("|"), f"{got} instead of {expected}"
        return
    raise AssertionError(f"{result!r} instead of {expected}")


def write(path, content=b"content"):
    with open(path, "wb") as file:
        file.write(content)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def same(found, expected):
    assert found == expected, f"{found!r} instead of {expected!r}"


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def renameat2(old, new, flags):
    if LIBC.renameat2(-100, old.encode(), -100, new.encode(), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def child(function):
    """Runs it in another process, which must not fail."""
    process = os.fork()
    if process == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return process


def wait(process):
    same(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), 0)


def as_user(number, function):
    def run():
        os.setgroups([])
        os.setgid(number)
        os.setuid(number)
        function()
    wait(child(run))


@case
def exclusive_creation_refuses_what_is_there():
    write("file"), os.mkdir("directory"), os.symlink("nowhere", "dangling")
    for name in ("file", "directory", "dangling"):
        fails("EEXIST", os.open, name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(os.open("new", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    assert not os.path.exists("nowhere")
    same(read("file"), b"content")


@case
def exclusive_creation_has_one_winner():
    for _ in range(20):
        def attempt():
            try:
                fd = os.open("lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                return
            os.close(fd)
            end = os.open("winners", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.write(end, b"x")
        for process in [child(attempt) for _ in range(4)]:
            wait(process)
        os.unlink("lock")
    same(read("winners"), b"x" * 20)


@case
def opening_what_is_of_another_kind_is_refused():
    write("file"), os.mkdir("directory"), os.symlink("file", "link")
    fails("ENOTDIR", os.open, "file", os.O_RDONLY | os.O_DIRECTORY)
    fails("EISDIR", os.open, "directory", os.O_WRONLY)
    fails("ELOOP", os.open, "link", os.O_RDONLY | os.O_NOFOLLOW)
    fails("ENOENT", os.open, "missing", os.O_RDONLY)
    fails("ENOTDIR", os.open, "file/below", os.O_RDONLY)
    fails("ENOENT", os.open, "missing/below", os.O_WRONLY | os.O_CREAT)
    os.symlink("new", "to-new")
    write("to-new")
    same(read("new"), b"content")


@case
def names_may_be_255_bytes_and_no_more():
    longest, too_long = "n" * 255, "n" * 256
    write("file"), os.mkdir("directory")
    for make in (write, os.mkdir, lambda name: os.symlink("x", name),
                 lambda name: os.link("file", name), lambda name: os.mkfifo(name)):
        fails("ENAMETOOLONG", make, too_long)
        make(longest)
        same(sorted(os.listdir(".")), ["directory", "file", longest])
        (os.rmdir if os.path.isdir(longest) else os.unlink)(longest)
    fails("ENAMETOOLONG", os.rename, "file", too_long)
    fails("ENAMETOOLONG", os.stat, too_long)
    fails("ENAMETOOLONG", os.unlink, too_long)
    os.rename("file", longest)
    fails("ENAMETOOLONG", os.stat, "directory/../" * 400)
    same(os.statvfs(".").f_namemax, 255)


@case
def names_may_hold_any_byte_but_two():
    names = [bytes([number]) for number in range(1, 256) if number not in b"/."]
    names += [b"...", b" ", b"a\nb", b"\xff\xfe", "\u00fc".encode(), b"-rf", b"*", b"con:"]
    for name in set(names):
        write(name, name)
    same(sorted(os.listdir(b".")), sorted(set(names)))
    for name in set(names):
        same(read(name), name)


@case
def deep_directories_can_be_walked_and_removed():
    for _ in range(60):
        os.mkdir("directory-in-a-directory")
        os.chdir("directory-in-a-directory")
    write("deepest")
    os.chdir("../" * 60)
    same(sum(len(files) for _, _, files in os.walk(".")), 1)
    shutil.rmtree("directory-in-a-directory")
    same(os.listdir("."), [])


@case
def making_and_removing_directories_refuses_what_it_must():
    write("file"), os.mkdir("full"), write("full/file"), os.mkdir("empty")
    os.symlink("nowhere", "dangling")
    for name in ("file", "full", "dangling"):
        fails("EEXIST", os.mkdir, name)
    fails("ENOENT", os.mkdir, "missing/below")
    fails("ENOTDIR", os.mkdir, "file/below")
    fails("ENOTEMPTY|EEXIST", os.rmdir, "full")
    fails("ENOTDIR", os.rmdir, "file")
    fails("ENOENT", os.rmdir, "missing")
    fails("EINVAL", os.rmdir, "empty/.")
    fails("EISDIR|EPERM", os.unlink, "empty")
    os.rmdir("empty")
    fails("ENOENT", os.stat, "empty")


@case
def removed_working_directory_is_told():
    os.mkdir("gone")
    before = os.getcwd()
    os.chdir("gone")
    os.rmdir("../gone")
    fails("ENOENT", os.getcwd)
    fails("ENOENT", write, "file")
    os.chdir(before)


@case
def rename_takes_the_place_of_a_file():
    write("old", b"old"), write("new", b"new")
    number = os.stat("old").st_ino
    os.rename("old", "new")
    same((read("new"), os.stat("new").st_ino), (b"old", number))
    fails("ENOENT", os.stat, "old")
    # Two names of one file: nothing happens.
    os.link("new", "other")
    os.rename("new", "other")
    same((os.stat("new").st_nlink, os.stat("other").st_ino), (2, number))
    os.rename("new", "new")
    os.symlink("nowhere", "link")
    os.rename("other", "link")
    same(os.path.islink("link"), False)
    os.symlink("link", "moved")
    os.rename("moved", "moved-on")
    same(os.readlink("moved-on"), "link")


@case
def rename_of_directories_keeps_to_the_rules():
    write("file"), os.mkdir("source"), write("source/inside"), os.mkdir("empty")
    os.mkdir("full"), write("full/other")
    fails("EISDIR", os.rename, "file", "empty")
    fails("ENOTDIR", os.rename, "source", "file")
    fails("ENOTEMPTY|EEXIST", os.rename, "source", "full")
    fails("EINVAL", os.rename, "source", "source/below")
    fails("ENOENT", os.rename, "missing", "x")
    fails("ENOENT", os.rename, "source", "missing/x")
    os.rename("source", "empty")
    same((os.listdir("empty"), os.path.exists("source")), (["inside"], False))
    os.rename("empty", "full/moved")
    same(read("full/moved/../moved/inside"), b"content")
    same(os.stat("full/moved/..").st_ino, os.stat("full").st_ino)
    os.rename("full/moved/inside", "inside")
    same(os.listdir("full/moved"), [])


@case
def rename_without_replacing_and_as_an_exchange():
    write("a", b"a"), write("b", b"b"), os.mkdir("c"), write("c/inside")
    fails("EEXIST", renameat2, "a", "b", 1)
    same((read("a"), read("b")), (b"a", b"b"))
    renameat2("a", "d", 1)
    renameat2("d", "b", 2)
    same((read("d"), read("b")), (b"b", b"a"))
    renameat2("d", "c", 2)
    same((read("c"), os.listdir("d")), (b"b", ["inside"]))
    fails("ENOENT", renameat2, "b", "missing", 2)


@case
def unlinked_file_lives_while_it_is_open():
    fd = os.open("file", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"before")
    os.unlink("file")
    same((os.fstat(fd).st_nlink, os.path.exists("file"), os.listdir(".")), (0, False, []))
    write("file", b"another")
    os.write(fd, b" after")
    os.fchmod(fd, 0o600)
    os.ftruncate(fd, 8)
    os.fsync(fd)
    same((os.pread(fd, 100, 0), read("file")), (b"before a", b"another"))
    os.close(fd)
    same(read("file"), b"another")


@case
def replaced_file_lives_while_it_is_open():
    write("old", b"old")
    with open("old", "rb") as file:
        write("new", b"new")
        os.rename("new", "old")
        same((file.read(), os.fstat(file.fileno()).st_nlink), (b"old", 0))
    same(read("old"), b"new")
    with open("old", "r+b") as file:
        os.rename("old", "moved")
        file.write(b"NEW")
    same(read("moved"), b"NEW")


@case
def removed_directory_lives_while_it_is_open():
    os.mkdir("directory")
    fd = os.open("directory", os.O_RDONLY)
    os.rmdir("directory")
    same(os.listdir(fd), [])
    fails("ENOENT", os.open, "file", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.close(fd)


@case
def link_counts_follow_the_names():
    write("file"), os.mkdir("directory")
    for number in range(50):
        os.link("file", f"directory/{number}")
        same(os.stat("file").st_nlink, number + 2)
    with open("directory/7", "ab") as file:
        file.write(b" more")
    same(read("directory/33"), b"content more")
    os.unlink("file")
    same(os.stat("directory/3").st_nlink, 50)
    for number in range(49):
        os.unlink(f"directory/{number}")
    same((os.stat("directory/49").st_nlink, read("directory/49")), (1, b"content more"))
    fails("EPERM", os.link, "directory", "x")
    fails("ENOENT", os.link, "missing", "x")
    write("x")
    fails("EEXIST", os.link, "directory/49", "x")
    os.symlink("x", "symlink")
    os.link("symlink", "to-symlink", follow_symlinks=False)
    same(os.readlink("to-symlink"), "x")


@case
def symbolic_links_hold_what_was_given():
    for length in (1, 2, 59, 60, 61, 255, 256, 1000, 4000, 4095):
        target = "/" + "t" * (length - 1)
        os.symlink(target, "link")
        same((os.readlink("link"), os.lstat("link").st_size), (target, length))
        os.unlink("link")
    fails("ENAMETOOLONG", os.symlink, "t" * 4096, "link")
    fails("ENOENT", os.symlink, "", "link")
    write("file")
    fails("EEXIST", os.symlink, "x", "file")
    fails("EINVAL", os.readlink, "file")
    os.symlink("b", "a"), os.symlink("a", "b")
    fails("ELOOP", os.stat, "a")
    os.mkdir("directory"), os.symlink("../file", "directory/up")
    same(read("directory/up"), b"content")
    os.symlink("directory", "to-directory")
    fails("ENOTDIR", os.rmdir, "to-directory")
    same(read("to-directory/up"), b"content")


@case
def modes_are_kept_bit_for_bit():
    write("file"), os.mkdir("directory"), os.symlink("file", "link")
    for bits in (0, 0o777, 0o644, 0o4755, 0o2755, 0o1644, 0o7777, 0o421):
        os.chmod("file", bits)
        same(mode("file"), bits)
        os.chmod("directory", bits)
        same(mode("directory"), bits)
    before = os.stat("file").st_ctime_ns
    os.chmod("link", 0o640)
    same((mode("file"), mode("link")), (0o640, 0o777))
    # Kernels before 6.13 tell times by the tick: a change within one shows by the next only.
    while os.stat("file").st_ctime_ns == before:
        os.chmod("link", 0o640)
    assert os.stat("file").st_ctime_ns > before
    with open("file", "rb") as file:
        os.fchmod(file.fileno(), 0)
        same((file.read(), mode("file")), (b"content", 0))
    fails("ENOENT", os.chmod, "missing", 0)


@case
def umask_takes_bits_away():
    for mask in (0, 0o022, 0o027, 0o077, 0o777):
        os.umask(mask)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.close(os.open("all", os.O_CREAT | os.O_WRONLY, 0o777))
        os.mkdir("directory", 0o777)
        os.mkfifo("fifo", 0o666)
        found = [mode(name) for name in ("file", "all", "directory", "fifo")]
        same(found, [bits & ~mask for bits in (0o666, 0o777, 0o777, 0o666)])
        os.unlink("file"), os.unlink("all"), os.rmdir("directory"), os.unlink("fifo")
    os.umask(0o022)
    os.mkdir("shared")
    os.chmod("shared", 0o2775)
    os.mkdir("shared/below")
    same(mode("shared/below"), 0o2755)
    fd = os.open("read-only", os.O_CREAT | os.O_WRONLY, 0o444)
    os.write(fd, b"may be written by who made it")
    os.close(fd)
    same(mode("read-only"), 0o444)


@case
def times_are_kept_to_the_nanosecond():
    write("file"), os.mkdir("directory"), os.symlink("file", "link")
    times = (1_000_000_000_123_456_789, 2_000_000_000_987_654_321)
    for name in ("file", "directory"):
        os.utime(name, ns=times)
        found = os.stat(name)
        same((found.st_atime_ns, found.st_mtime_ns), times)
    os.utime("link", ns=(1, 3), follow_symlinks=False)
    same((os.lstat("link").st_mtime_ns, os.stat("file").st_mtime_ns), (3, times[1]))
    os.utime("file", ns=(-5_000_000_000, -1_500_000_000))
    same(os.stat("file").st_mtime_ns, -1_500_000_000)
    subprocess.run(["touch", "-a", "-d", "2001-02-03 04:05:06.789", "file"], check=True)
    same(os.stat("file").st_mtime_ns, -1_500_000_000)
    before = os.stat("file").st_ctime_ns
    os.utime("file")
    assert os.stat("file").st_mtime_ns >= before


@case
def changes_show_in_the_times():
    os.mkdir("directory")
    for change in (lambda: write("directory/a"), lambda: os.rename("directory/a", "directory/b"),
                   lambda: os.link("directory/b", "directory/c"),
                   lambda: os.unlink("directory/c"), lambda: os.mkdir("directory/d")):
        os.utime("directory", ns=(0, 0))
        change()
        assert os.stat("directory").st_mtime_ns > 0
    os.utime("directory/b", ns=(0, 0))
    with open("directory/b", "ab") as file:
        file.write(b"x")
    assert os.stat("directory/b").st_mtime_ns > 0
    os.utime("directory/b", ns=(0, 0))
    os.truncate("directory/b", 1)
    assert os.stat("directory/b").st_mtime_ns > 0


@case
def truncated_files_grow_with_zeros():
    write("file", b"x" * 10_000)
    os.truncate("file", 5000)
    same(os.stat("file").st_size, 5000)
    os.truncate("file", 12_000)
    same(read("file"), b"x" * 5000 + bytes(7000))
    with open("file", "r+b") as file:
        file.truncate(4095)
        file.seek(4097)
        file.write(b"y")
    same(read("file"), b"x" * 4095 + bytes(2) + b"y")
    os.close(os.open("file", os.O_WRONLY | os.O_TRUNC))
    same(os.stat("file").st_size, 0)
    fails("EINVAL", os.truncate, "file", -1)
    os.mkdir("directory")
    fails("EISDIR", os.truncate, "directory", 0)
    fails("ENOENT", os.truncate, "missing", 0)
    with open("file", "rb") as file:
        fails("EINVAL|EBADF", os.ftruncate, file.fileno(), 0)


@case
def sparse_files_take_no_room():
    fd = os.open("file", os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"end", 3 << 30)
    os.fsync(fd)
    same(os.fstat(fd).st_size, (3 << 30) + 3)
    assert os.fstat(fd).st_blocks * 512 < 1 << 20
    same(os.pread(fd, 4096, 1 << 30), bytes(4096))
    same(os.pread(fd, 100, (3 << 30) - 1), b"\0end")
    same(os.pread(fd, 100, 4 << 30), b"")
    os.posix_fallocate(fd, 0, 1 << 20)
    same(os.fstat(fd).st_size, (3 << 30) + 3)
    assert os.fstat(fd).st_blocks * 512 >= 1 << 20
    os.close(fd)


@case
def appending_ends_up_at_the_end():
    first, second = (os.open("file", os.O_CREAT | os.O_APPEND | os.O_RDWR) for _ in range(2))
    for fd in (first, second, first):
        os.write(fd, b"%d" % (fd == first))
    os.lseek(first, 0, os.SEEK_SET)
    os.write(first, b"z")
    same(os.pread(second, 100, 0), b"101z")

    def append(number):
        fd = os.open("lines", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        for line in range(300):
            os.write(fd, b"%d:%d:%s\n" % (number, line, b"#" * 50))
    for process in [child(lambda number=number: append(number)) for number in range(4)]:
        wait(process)
    lines = read("lines").splitlines()
    for number in range(4):
        own = [line for line in lines if line.startswith(b"%d:" % number)]
        same(own, [b"%d:%d:%s" % (number, line, b"#" * 50) for line in range(300)])
    same(len(lines), 1200)


@case
def content_is_right_at_odd_places():
    content = os.urandom(5_000_003)
    with open("file", "wb", buffering=0) as file:
        at = 0
        for size in (1, 4095, 4097, 65_537, 1_000_001, len(content)):
            at += file.write(content[at:at + size])
    same(read("file") == content, True)
    fd = os.open("file", os.O_RDWR)
    for at, size in ((4095, 2), (131_071, 65_538), (4_999_999, 100), (0, 5_000_003)):
        same(os.pread(fd, size, at) == content[at:at + size], True)
    os.preadv(fd, [bytearray(3), bytearray(5000)], 17)
    os.close(fd)
    source, target = os.open("file", os.O_RDONLY), os.open("copy", os.O_CREAT | os.O_RDWR)
    left = len(content)
    while left:
        left -= os.copy_file_range(source, target, left)
    same(read("copy") == content, True)


@case
def mapped_memory_and_files_are_one():
    write("file", bytes(20_000))
    with open("file", "r+b") as file:
        shared = mmap.mmap(file.fileno(), 20_000)
        private = mmap.mmap(file.fileno(), 20_000, flags=mmap.MAP_PRIVATE)
        shared[4094:4100] = b"mapped"
        private[0:7] = b"private"
        shared.flush()
        same(os.pread(file.fileno(), 6, 4094), b"mapped")
        os.pwrite(file.fileno(), b"written", 9000)
        same(shared[9000:9007], b"written")
        shared.close(), private.close()
    same((read("file")[:7], read("file")[4094:4100]), (bytes(7), b"mapped"))


@case
def each_entry_of_a_large_directory_is_listed_once():
    names = {f"entry-with-a-rather-long-name-{number}" for number in range(3000)}
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    found = os.listdir(".")
    same((len(found), set(found) == names), (3000, True))
    # Removed while it is read.
    with os.scandir(".") as entries:
        for entry in entries:
            os.unlink(entry.name)
    same(os.listdir("."), [])


@case
def pipes_and_sockets_with_names_connect_processes():
    os.mkfifo("fifo")
    process = child(lambda: write("fifo", b"through the pipe"))
    same(read("fifo"), b"through the pipe")
    wait(process)
    same(stat.S_ISFIFO(os.stat("fifo").st_mode), True)
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket")
    server.listen()

    def call():
        client = socket.socket(socket.AF_UNIX)
        client.connect("socket")
        client.sendall(b"hello")
    process = child(call)
    same(server.accept()[0].recv(100), b"hello")
    wait(process)
    same(stat.S_ISSOCK(os.stat("socket").st_mode), True)


@case
def locks_keep_another_process_out():
    for lock in (fcntl.flock, fcntl.lockf):
        with open("file", "w") as file:
            lock(file, fcntl.LOCK_EX)

            def refused():
                with open("file", "w") as other:
                    fails("EAGAIN|EACCES", lock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)

            def granted():
                with open("file", "w") as other:
                    lock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            wait(child(refused))
            lock(file, fcntl.LOCK_UN)
            wait(child(granted))


@case
def programs_run_from_it():
    shutil.copy("/usr/bin/env", "program")
    write("script", b"#!/bin/sh\necho \"ran $1\"\n")
    fails("EACCES", subprocess.run, ["./script"])
    os.chmod("script", 0o755), os.chmod("program", 0o755)
    same(subprocess.run(["./script", "well"], capture_output=True).stdout, b"ran well\n")
    same(subprocess.run(["./program", "echo", "x"], capture_output=True).stdout, b"x\n")


@case
def syncing_is_accepted():
    for flags in (os.O_SYNC, os.O_DSYNC, 0):
        fd = os.open("file", os.O_CREAT | os.O_RDWR | flags)
        os.write(fd, b"content")
        os.fsync(fd), os.fdatasync(fd)
        os.close(fd)
    fd = os.open(".", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    os.sync()


@owners_case
def owners_are_kept_and_take_set_id_bits_away():
    write("file"), os.symlink("file", "link"), os.mkdir("directory")
    os.chmod("file", 0o6755)
    os.chown("file", 1000, 1001)
    found = os.stat("file")
    same((found.st_uid, found.st_gid, mode("file")), (1000, 1001, 0o755))
    os.chown("link", 5, 6, follow_symlinks=False)
    same((os.lstat("link").st_uid, os.stat("file").st_uid), (5, 1000))
    os.chown("file", -1, 7)
    same((os.stat("file").st_uid, os.stat("file").st_gid), (1000, 7))
    os.chown("directory", 1000, 2000)
    os.chmod("directory", 0o2775)
    write("directory/file")
    same(os.stat("directory/file").st_gid, 2000)


@owners_case
def users_have_what_they_make():
    os.chmod(".", 0o777)

    def make():
        write("file"), os.mkdir("directory"), os.symlink("x", "link"), os.mkfifo("fifo")
        fails("EPERM", os.chown, "file", 0, -1)
    as_user(1000, make)
    for name in ("file", "directory", "link", "fifo"):
        found = os.lstat(name)
        same((name, found.st_uid, found.st_gid), (name, 1000, 1000))


@owners_case
def users_are_kept_from_what_is_not_theirs():
    os.chmod(".", 0o755)
    write("secret"), os.chmod("secret", 0o600)
    write("public"), os.chmod("public", 0o644)
    os.mkdir("closed"), write("closed/file"), os.chmod("closed", 0o700)
    os.mkdir("open"), os.chmod("open", 0o777)

    def attempt():
        same(read("public"), b"content")
        for function, arguments in (
            (read, ("secret",)), (write, ("public",)), (write, ("new",)), (os.mkdir, ("new",)),
            (os.unlink, ("public",)), (os.rename, ("public", "open/mine")), (os.listdir, ("closed",)),
            (read, ("closed/file",)), (os.symlink, ("x", "new")), (os.truncate, ("public", 0)),
        ):
            fails("EACCES", function, *arguments)
        for function, arguments in (
            (os.chmod, ("public", 0o777)), (os.chown, ("public", 1000, -1)),
            (os.utime, ("public", (1, 1))),
        ):
            fails("EPERM", function, *arguments)
        fails("EACCES", os.utime, "public")
        same(os.access("public", os.R_OK), True)
        same(os.access("public", os.W_OK), False)
    as_user(1000, attempt)


@owners_case
def sticky_directories_protect_other_users_files():
    os.mkdir("sticky"), os.chmod("sticky", 0o1777)
    as_user(1000, lambda: (write("sticky/file"), os.mkdir("sticky/directory")))

    def other():
        write("sticky/own")
        fails("EPERM", os.unlink, "sticky/file")
        fails("EPERM", os.rmdir, "sticky/directory")
        fails("EPERM", os.rename, "sticky/file", "sticky/taken")
        fails("EPERM", os.rename, "sticky/own", "sticky/file")
        os.unlink("sticky/own")
    as_user(1001, other)
    as_user(1000, lambda: (os.rename("sticky/file", "sticky/moved"), os.unlink("sticky/moved"),
                           os.rmdir("sticky/directory")))
    same(os.listdir("sticky"), [])


def main():
    root = os.path.realpath(sys.argv[1])
    cases = CASES + (OWN_USERS if "own-users" in sys.argv[2:] else [])
    passed = 0
    for function in cases:
        directory = f"{root}/{function.__name__}"
        os.mkdir(directory)
        os.chdir(directory)
        os.umask(0o022)
        try:
            function()
            passed += 1
        except Exception:
            print(f"FAILED {function.__name__}\n{traceback.format_exc()}")
        os.chdir(root)
    print(f"{passed} of {len(cases)} passed")
    sys.exit(passed != len(cases))


main()
