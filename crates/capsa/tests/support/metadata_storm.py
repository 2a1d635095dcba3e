"""What a large build does to a directory: storm.py DIRECTORY build|check|delete DIRECTORIES [forget].

DIRECTORIES are those that it makes, of a hundred files each. With `forget` the kernel drops what it knows of files now
and then.
"""
import os, shutil, sys, time

DIRECTORIES, FILES = int(sys.argv[3]), 100
begun = time.monotonic()


def tell(what):
    global begun
    print(f"{what} in {time.monotonic() - begun:.1f} s")
    begun = time.monotonic()


def content(directory, file):
    return b"%d/%d\n" % (directory, file) * (1 + directory * file % 300)


def directories():
    for directory in range(DIRECTORIES):
        yield directory
        if "forget" in sys.argv[4:] and directory % 50 == 49:
            with open("/proc/sys/vm/drop_caches", "w") as drop:
                drop.write("2")


def each():
    return ((directory, file) for directory in directories() for file in range(FILES))


def is_left(file):
    return file % 4 != 3


def build():
    for directory in range(DIRECTORIES):
        os.makedirs(f"deps/unit-{directory}/build/temporary")
    for directory, file in each():
        with open(f"deps/unit-{directory}/build/temporary/{file}.tmp", "wb") as out:
            out.write(content(directory, file))
    tell(f"{DIRECTORIES * FILES} files made")
    total = 0
    for directory, file in each():
        found = os.stat(f"deps/unit-{directory}/build/temporary/{file}.tmp")
        assert found.st_size == len(content(directory, file)), (directory, file)
        total += found.st_size
    tell(f"of {total} bytes by stat")
    for directory, file in each():
        here = f"deps/unit-{directory}/build"
        os.rename(f"{here}/temporary/{file}.tmp", f"{here}/{file}.o")
    for directory in range(DIRECTORIES):
        os.rmdir(f"deps/unit-{directory}/build/temporary")
        os.rename(f"deps/unit-{directory}", f"deps/done-{directory}")
    tell("files and directories renamed")
    os.mkdir("final")
    for directory in range(DIRECTORIES):
        os.link(f"deps/done-{directory}/build/0.o", f"final/{directory}.o")
    for directory, file in each():
        if not is_left(file):
            os.unlink(f"deps/done-{directory}/build/{file}.o")
    tell("some linked, a quarter deleted")
    check()


def check():
    left = 0
    for directory in directories():
        here = f"deps/done-{directory}/build"
        names = sorted(f"{file}.o" for file in range(FILES) if is_left(file))
        assert sorted(os.listdir(here)) == names, here
        for file in filter(is_left, range(FILES)):
            with open(f"{here}/{file}.o", "rb") as found:
                assert found.read() == content(directory, file), (directory, file)
            left += 1
        assert os.stat(f"final/{directory}.o").st_nlink == 2, directory
        assert os.path.samefile(f"final/{directory}.o", f"{here}/0.o"), directory
    assert len(os.listdir("deps")) == len(os.listdir("final")) == DIRECTORIES
    tell(f"{left} files found and read")


os.chdir(sys.argv[1])
if sys.argv[2] == "build":
    build()
elif sys.argv[2] == "check":
    check()
else:
    for directory in directories():
        shutil.rmtree(f"deps/done-{directory}")
    os.rmdir("deps")
    shutil.rmtree("final")
    tell("all deleted")
