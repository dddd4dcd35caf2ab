/* Copies many parts of many buffers and files into one block, and sets others to zero, without holding the interpreter.
 *
 * A block is rows of `row` bytes, `stride` bytes apart. A piece lies on one lane, whose first row begins `base` bytes
 * into the block, and goes on from row to row: byte p of a lane is byte p % row of its row p / row.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* preadv2 */
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

enum { SOURCE, FROM, BASE, AT, COUNT, COLUMNS };

/* The value of SOURCE where there is none. */
enum { ZEROS = -1 };

/* A buffer, or a part of an open file. */
typedef struct {
    Py_buffer buffer;
    int descriptor; /* -1: a buffer */
    int64_t offset;
    int64_t length;
} Source;

enum { VECTORS = 256, ENDS_EARLY = -1 };

/* Shorter rows are read together and then put in place: a vector of its own for each costs more than the second copy. */
enum { SHORT_ROW = 4096, TOGETHER = 128 << 10 };

static inline void put(char *to, const char *from, size_t count)
{
    if (from == NULL) {
        memset(to, 0, count);
        return;
    }
    switch (count) {
    case 1: memcpy(to, from, 1); break;
    case 2: memcpy(to, from, 2); break;
    case 4: memcpy(to, from, 4); break;
    case 8: memcpy(to, from, 8); break;
    default: memcpy(to, from, count);
    }
}

/* Reads a piece from a file, many rows at once. 0, an errno, or ENDS_EARLY. */
static int read_piece(char *lane, const int64_t *piece, const Source *source, int64_t row, int64_t stride)
{
    struct iovec vectors[VECTORS];
    int64_t done = 0;
    while (done < piece[COUNT]) {
        int used = 0;
        for (int64_t next = done; next < piece[COUNT] && used < VECTORS; used++) {
            int64_t at = piece[AT] + next, within = at % row, left = piece[COUNT] - next;
            int64_t count = row - within < left ? row - within : left;
            vectors[used].iov_base = lane + at / row * stride + within;
            vectors[used].iov_len = (size_t)count;
            next += count;
        }
        ssize_t got = preadv(source->descriptor, vectors, used, source->offset + piece[FROM] + done);
        if (got < 0 && errno != EINTR)
            return errno;
        if (got == 0)
            return ENDS_EARLY;
        if (got > 0)
            done += got;
    }
    return 0;
}

/* Puts bytes, or zeros, on a lane from byte `at` of it on. */
static void put_rows(char *lane, const char *from, int64_t at, int64_t left, int64_t row, int64_t stride)
{
    int64_t within = at % row;
    char *to = lane + at / row * stride;
    while (left > 0) {
        int64_t count = row - within < left ? row - within : left;
        put(to + within, from, (size_t)count);
        if (from != NULL)
            from += count;
        left -= count;
        within = 0;
        to += stride;
    }
}

/* Reads a piece of short rows from a file, by way of `together`. 0, an errno, or ENDS_EARLY. */
static int read_short_rows(char *lane, const int64_t *piece, const Source *source, int64_t row, int64_t stride,
                           char *together)
{
    int64_t done = 0;
    while (done < piece[COUNT]) {
        int64_t left = piece[COUNT] - done, wanted = left < TOGETHER ? left : TOGETHER;
        ssize_t got = pread(source->descriptor, together, (size_t)wanted, source->offset + piece[FROM] + done);
        if (got < 0 && errno != EINTR)
            return errno;
        if (got == 0)
            return ENDS_EARLY;
        if (got > 0) {
            put_rows(lane, together, piece[AT] + done, got, row, stride);
            done += got;
        }
    }
    return 0;
}

/* 0, an errno, or ENDS_EARLY. */
static int copy_pieces(char *block, const int64_t *piece, Py_ssize_t count, const Source *sources, int64_t row,
                       int64_t stride)
{
    char *together = NULL;
    int failed = 0;
    for (; count > 0 && !failed; count--, piece += COLUMNS) {
        const Source *source = piece[SOURCE] < 0 ? NULL : &sources[piece[SOURCE]];
        char *lane = block + piece[BASE];
        if (source == NULL || source->descriptor < 0) {
            const char *from = source == NULL ? NULL : (const char *)source->buffer.buf + piece[FROM];
            put_rows(lane, from, piece[AT], piece[COUNT], row, stride);
        } else if (row >= SHORT_ROW) {
            failed = read_piece(lane, piece, source, row, stride);
        } else if (together == NULL && (together = malloc(TOGETHER)) == NULL) {
            failed = ENOMEM;
        } else {
            failed = read_short_rows(lane, piece, source, row, stride, together);
        }
    }
    free(together);
    return failed;
}

/* Whether a piece lies in its source and in the block. */
static int fits(const int64_t *piece, const Source *sources, Py_ssize_t num_sources, Py_ssize_t size, int64_t row,
                int64_t stride)
{
    int64_t count = piece[COUNT], at = piece[AT], base = piece[BASE];
    if (piece[SOURCE] < ZEROS || piece[SOURCE] >= num_sources || count < 0 || at < 0 || base < 0 || base >= stride)
        return 0;
    if (piece[SOURCE] >= 0) {
        int64_t length = sources[piece[SOURCE]].length;
        if (piece[FROM] < 0 || piece[FROM] > length || count > length - piece[FROM])
            return 0;
    }
    if (count == 0)
        return 1;
    if (at > size || count > size)
        return 0;
    int64_t last = at + count - 1;
    if (last / row > size / stride)
        return 0;
    return base + last / row * stride + last % row < size;
}

/* Takes hold of a source: a buffer, or a tuple of a file's descriptor, an offset and a length. */
static int hold(Source *source, PyObject *object)
{
    if (PyTuple_Check(object)) {
        long long offset, length;
        if (!PyArg_ParseTuple(object, "iLL", &source->descriptor, &offset, &length))
            return 0;
        if (source->descriptor < 0 || offset < 0 || length < 0) {
            PyErr_SetString(PyExc_ValueError, "a file has a descriptor, an offset and a length");
            return 0;
        }
        source->offset = offset;
        source->length = length;
        return 1;
    }
    if (PyObject_GetBuffer(object, &source->buffer, PyBUF_C_CONTIGUOUS) != 0)
        return 0;
    source->descriptor = -1;
    source->length = source->buffer.len;
    return 1;
}

static PyObject *copy(PyObject *self, PyObject *args)
{
    PyObject *list, *result = NULL;
    Py_buffer block, table;
    long long row, stride;
    if (!PyArg_ParseTuple(args, "w*O!y*LL", &block, &PyList_Type, &list, &table, &row, &stride))
        return NULL;
    Py_ssize_t held = 0, num_sources = PyList_GET_SIZE(list);
    Py_ssize_t pieces = table.len / (Py_ssize_t)(COLUMNS * sizeof(int64_t));
    Source *sources = PyMem_Calloc((size_t)num_sources + 1, sizeof(Source));
    if (sources == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (; held < num_sources; held++)
        if (!hold(&sources[held], PyList_GET_ITEM(list, held)))
            goto done;
    if (row < 1 || stride < row || table.len % (Py_ssize_t)(COLUMNS * sizeof(int64_t)) != 0) {
        PyErr_Format(PyExc_ValueError, "rows have at least one byte and lie apart, got row %lld, stride %lld", row, stride);
        goto done;
    }
    const int64_t *piece = table.buf;
    for (Py_ssize_t i = 0; i < pieces; i++)
        if (!fits(piece + i * COLUMNS, sources, num_sources, block.len, row, stride)) {
            PyErr_Format(PyExc_ValueError, "piece %zd does not lie in its source and in the block", i);
            goto done;
        }
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = copy_pieces(block.buf, piece, pieces, sources, row, stride);
    Py_END_ALLOW_THREADS
    if (failed == ENDS_EARLY) {
        PyErr_SetString(PyExc_EOFError, "a file ends early");
    } else if (failed) {
        errno = failed;
        PyErr_SetFromErrno(PyExc_OSError);
    } else {
        result = Py_NewRef(Py_None);
    }
done:
    while (held-- > 0)
        if (sources[held].descriptor < 0)
            PyBuffer_Release(&sources[held].buffer);
    PyMem_Free(sources);
    PyBuffer_Release(&table);
    PyBuffer_Release(&block);
    return result;
}

/* Whether a byte of a file is in the operating system's cache; 0 where that cannot be said. */
static int is_cached(int descriptor, off_t offset)
{
#ifdef RWF_NOWAIT
    char byte;
    struct iovec vector = {&byte, 1};
    return preadv2(descriptor, &vector, 1, offset, RWF_NOWAIT) == 1;
#else
    (void)descriptor, (void)offset;
    return 0;
#endif
}

static PyObject *announce(PyObject *self, PyObject *list)
{
    if (!PyList_Check(list)) {
        PyErr_SetString(PyExc_TypeError, "announce takes a list");
        return NULL;
    }
    Py_ssize_t count = PyList_GET_SIZE(list);
    Source *sources = PyMem_Calloc((size_t)count + 1, sizeof(Source));
    if (sources == NULL)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *each = PyList_GET_ITEM(list, i);
        if (!PyTuple_Check(each)) {
            PyErr_SetString(PyExc_TypeError, "a part of a file is a tuple");
            PyMem_Free(sources);
            return NULL;
        }
        if (!hold(&sources[i], each)) {
            PyMem_Free(sources);
            return NULL;
        }
    }
    Py_BEGIN_ALLOW_THREADS
#ifdef POSIX_FADV_WILLNEED
    for (Py_ssize_t i = 0; i < count; i++) {
        const Source *each = &sources[i];
        int64_t last = each->offset + (each->length > 0 ? each->length - 1 : 0);
        /* Telling of what is there costs ten times as much as looking. That it fails does not matter. */
        if (!is_cached(each->descriptor, each->offset) || !is_cached(each->descriptor, last))
            (void)posix_fadvise(each->descriptor, each->offset, each->length, POSIX_FADV_WILLNEED);
    }
#endif
    Py_END_ALLOW_THREADS
    PyMem_Free(sources);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"copy", copy, METH_VARARGS,
     "copy(block, sources, table, row, stride)\n--\n\n"
     "Copy pieces into a block: int64 rows of source (-1: zeros), from, base, at and count, in bytes. A\n"
     "source is a buffer, or a file's descriptor, offset and length."},
    {"announce", announce, METH_O,
     "announce(parts)\n--\n\n"
     "Let the operating system begin to read parts of files that it does not have: tuples of a descriptor, an offset and\n"
     "a length."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_copy", "Copies many parts of many buffers into one block.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__copy(void)
{
    return PyModule_Create(&module);
}
