/* Reads many small files into one buffer, without holding the interpreter. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* Reads one file that has `size` bytes and was modified then; whether it is still that one. */
static int read_one(const char *path, char *to, int64_t size, int64_t modified)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    int64_t done = 0;
    while (done < size) {
        ssize_t count = read(file, to + done, (size_t)(size - done));
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            break;
        done += count;
    }
    struct stat found;
    int same = done == size && fstat(file, &found) == 0 && found.st_size == size &&
               (int64_t)found.st_mtim.tv_sec * 1000000000 + found.st_mtim.tv_nsec == modified;
    close(file);
    return same;
}

static PyObject *read_files(PyObject *module, PyObject *args)
{
    PyObject *paths;
    Py_buffer sizes, modified, out;
    (void)module;
    if (!PyArg_ParseTuple(args, "O!y*y*w*", &PyTuple_Type, &paths, &sizes, &modified, &out))
        return NULL;
    PyObject *result = NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(paths), done = 0;
    const int64_t *size = sizes.buf, *when = modified.buf;
    PyObject **held = calloc((size_t)count + 1, sizeof *held);
    int64_t total = 0;
    int fits = sizes.len == count * 8 && modified.len == count * 8;
    for (Py_ssize_t at = 0; fits && at < count; at++) {
        fits = size[at] >= 0 && size[at] <= out.len - total;
        total += fits ? size[at] : 0;
    }
    if (held == NULL) {
        PyErr_NoMemory();
    } else if (!fits) {
        PyErr_SetString(PyExc_ValueError, "each path has a size and a time, and the buffer holds all");
    } else {
        Py_ssize_t named = 0;
        while (named < count && PyUnicode_FSConverter(PyTuple_GET_ITEM(paths, named), &held[named]))
            named++;
        if (named == count) {
            Py_BEGIN_ALLOW_THREADS
            char *to = out.buf;
            for (; done < count; done++) {
                if (!read_one(PyBytes_AS_STRING(held[done]), to, size[done], when[done]))
                    break;
                to += size[done];
            }
            Py_END_ALLOW_THREADS
            result = PyLong_FromSsize_t(done);
        }
        while (named > 0)
            Py_DECREF(held[--named]);
    }
    free(held);
    PyBuffer_Release(&sizes);
    PyBuffer_Release(&modified);
    PyBuffer_Release(&out);
    return result;
}

static PyMethodDef methods[] = {
    {"read_files", read_files, METH_VARARGS,
     "read_files(paths, sizes, modified, out): read files (a tuple of paths) of so many bytes, modified then (int64, ns), "
     "one behind the other; return how many were read before one that is not there, or another one."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_read", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__read(void)
{
    return PyModule_Create(&definition);
}
