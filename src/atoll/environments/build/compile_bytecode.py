"""Compiling an environment's bytecode, as a program for the base interpreter.

It runs with `-I -S`: with `site`, each start would execute the `.pth` files of the environment, which are code of
packages. (uv's own `--compile-bytecode` starts the environment's interpreter.) Processes share the files by size,
largest first. A file that does not compile is left as it is, as installers do. Any Python from 3.6 on runs it.
"""

PROGRAM = """
import compileall, os, sys
found = []
for directory, inner, names in os.walk(sys.argv[1]):
    inner[:] = [name for name in inner if name != "__pycache__"]
    for name in names:
        if name.endswith(".py"):
            path = os.path.join(directory, name)
            try:
                found.append((os.stat(path).st_size, path))
            except OSError:
                pass
found.sort(reverse=True)
total = sum(size for size, path in found)
workers = min(len(os.sched_getaffinity(0)), 16) if total > 300000 else 1
children = []
for part in range(1, workers):
    pid = os.fork()
    if pid == 0:
        break
    children.append(pid)
else:
    part = 0
try:
    for size, path in found[part::workers]:
        try:
            compileall.compile_file(path, quiet=2, force=True)
        except Exception:
            pass
finally:
    if part:
        os._exit(0)
for pid in children:
    os.waitpid(pid, 0)
"""
"""The program; its argument is the directory below which it compiles."""
