/* Counts and moments of many values, channel by channel, without holding the interpreter. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { TABLES = 4 };

/* Several tables: one alone would wait for itself where equal values follow each other. */
static int count_bytes(const uint8_t *values, Py_ssize_t length, int64_t *counts)
{
    uint64_t *tables = calloc((size_t)TABLES * 256, sizeof *tables);
    if (tables == NULL)
        return -1;
    Py_ssize_t at = 0;
    for (; at + TABLES <= length; at += TABLES)
        for (int table = 0; table < TABLES; table++)
            tables[256 * table + values[at + table]]++;
    for (; at < length; at++)
        tables[values[at]]++;
    for (int cell = 0; cell < 256; cell++)
        for (int table = 0; table < TABLES; table++)
            counts[cell] += (int64_t)tables[256 * table + cell];
    free(tables);
    return 0;
}

static PyObject *count(PyObject *module, PyObject *args)
{
    Py_buffer values, counts;
    Py_ssize_t width, channels;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*w*nn", &values, &counts, &width, &channels))
        return NULL;
    PyObject *result = NULL;
    Py_ssize_t cells = width == 1 ? 256 : 65536;
    if ((width != 1 && width != 2) || channels < 1 || values.len % (width * channels) ||
        counts.len != channels * cells * (Py_ssize_t)sizeof(int64_t)) {
        PyErr_SetString(PyExc_ValueError, "values are whole steps of one or two bytes a channel, and each has its counts");
    } else {
        int failed = 0;
        Py_BEGIN_ALLOW_THREADS
        if (width == 1 && channels == 1) {
            failed = count_bytes(values.buf, values.len, counts.buf);
        } else {
            int64_t *cell = counts.buf;
            Py_ssize_t steps = values.len / (width * channels);
            for (Py_ssize_t step = 0; step < steps; step++)
                for (Py_ssize_t channel = 0; channel < channels; channel++) {
                    Py_ssize_t at = step * channels + channel;
                    cell[channel * cells +
                         (width == 1 ? ((const uint8_t *)values.buf)[at] : ((const uint16_t *)values.buf)[at])]++;
                }
        }
        Py_END_ALLOW_THREADS
        if (failed)
            PyErr_NoMemory();
        else
            result = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&counts);
    return result;
}

/* What is kept of a channel. */
enum { COUNT, MISSING, INFINITE, MEAN, SQUARES, LOW, HIGH, KEPT };

/* Values that are gone through twice, so few that they stay in the cache. */
enum { BLOCK = 4096 };

static inline double value_at(const void *values, int is_double, Py_ssize_t at)
{
    return is_double ? ((const double *)values)[at] : (double)((const float *)values)[at];
}

/* Steps [start, stop) of one channel; merged as Chan, Golub & LeVeque (1983) do. */
static void add_block(const void *values, int is_double, Py_ssize_t channels, Py_ssize_t channel, Py_ssize_t start,
                      Py_ssize_t stop, double *kept, int64_t *cells, int shift)
{
    double sum = 0, low = INFINITY, high = -INFINITY;
    int64_t count = 0, missing = 0, infinite = 0;
    for (Py_ssize_t step = start; step < stop; step++) {
        double value = value_at(values, is_double, step * channels + channel);
        if (!isfinite(value)) {
            if (isnan(value))
                missing++;
            else
                infinite++;
            continue;
        }
        count++;
        sum += value;
        low = value < low ? value : low;
        high = value > high ? value : high;
        if (cells != NULL) {
            float single = (float)value;
            uint32_t bits;
            memcpy(&bits, &single, sizeof bits);
            cells[bits >> shift]++;
        }
    }
    kept[MISSING] += (double)missing;
    kept[INFINITE] += (double)infinite;
    if (!count)
        return;
    double mean = sum / (double)count, squares = 0, rest = 0;
    for (Py_ssize_t step = start; step < stop; step++) {
        double value = value_at(values, is_double, step * channels + channel);
        if (isfinite(value)) {
            double deviation = value - mean;
            squares += deviation * deviation;
            rest += deviation;
        }
    }
    squares -= rest * rest / (double)count;
    double total = kept[COUNT] + (double)count, share = (double)count / total, apart = mean - kept[MEAN];
    kept[LOW] = kept[COUNT] > 0 && kept[LOW] < low ? kept[LOW] : low;
    kept[HIGH] = kept[COUNT] > 0 && kept[HIGH] > high ? kept[HIGH] : high;
    kept[SQUARES] += (squares > 0 ? squares : 0) + apart * apart * kept[COUNT] * share;
    kept[MEAN] += apart * share;
    kept[COUNT] = total;
}

static PyObject *moments(PyObject *module, PyObject *args)
{
    Py_buffer values, kept, cells;
    Py_ssize_t channels;
    int is_double, bits;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*pw*w*ni", &values, &is_double, &kept, &cells, &channels, &bits))
        return NULL;
    PyObject *result = NULL;
    Py_ssize_t size = is_double ? sizeof(double) : sizeof(float);
    if (channels < 1 || bits < 1 || bits > 16 || values.len % (size * channels) ||
        kept.len != channels * KEPT * (Py_ssize_t)sizeof(double) ||
        (cells.len && cells.len != channels * ((Py_ssize_t)1 << bits) * (Py_ssize_t)sizeof(int64_t))) {
        PyErr_SetString(PyExc_ValueError, "values are whole steps, and each channel has what is kept of it and its cells");
    } else {
        Py_BEGIN_ALLOW_THREADS
        Py_ssize_t steps = values.len / (size * channels), block = BLOCK / channels > 16 ? BLOCK / channels : 16;
        for (Py_ssize_t start = 0; start < steps; start += block)
            for (Py_ssize_t channel = 0; channel < channels; channel++)
                add_block(values.buf, is_double, channels, channel, start, start + block < steps ? start + block : steps,
                          (double *)kept.buf + channel * KEPT,
                          cells.len ? (int64_t *)cells.buf + (channel << bits) : NULL, 32 - bits);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&kept);
    PyBuffer_Release(&cells);
    return result;
}

static PyMethodDef methods[] = {
    {"moments", moments, METH_VARARGS,
     "moments(values, is_double, kept, cells, channels, bits): add to kept [channels, 7] and cells [channels, 2^bits]"},
    {"count", count, METH_VARARGS, "count(values, counts, width, channels): add to counts [channels, cells]"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_count", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__count(void)
{
    return PyModule_Create(&definition);
}
