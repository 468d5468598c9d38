/* Products of few rows with bfloat16 or int8 weights by tiles of a matrix unit (Intel AMX); compiled behind native_int8.c,
 * as one with it.
 *
 * Vectors multiply a weight with one row at a time; a tile of 16 outputs x LINE bytes of weights, as they lie in memory,
 * meets eight rows at once. These are halved, so that their precision does not suffer: a float32 into two bfloat16, whose
 * sum keeps 16 of its bits, beside bfloat16 weights; an int16 into two int8, exactly, beside int8. Upper halves stand in
 * columns 0 to 7 of a tile of x, lower ones in columns 8 to 15.
 *
 * Sums grow along the weights of an output, in every tile alike: the result of a row depends neither on the other rows
 * nor on the number of threads.
 */

#define COLUMN_ROWS 8 /* of x in a tile */
#define SIDE 16       /* rows of a tile, and its columns of 4 bytes */
#define TILE_BYTES (SIDE * LINE)
#define SHORT 1024 /* bytes of an output, up to which the processor does not see in time what is read next */

/* One after the other in `room`: tiles of x, the steps of its rows, and a row that is being rounded. */
INLINE int64_t tiles_along(const product *p) {
    const int64_t many = p->kind == INT8 ? LINE : LINE / 2;
    return (p->in + many - 1) / many;
}
INLINE int64_t column_groups(const product *p) { return (p->rows + COLUMN_ROWS - 1) / COLUMN_ROWS; }

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__linux__)

#include <sys/syscall.h>
#include <unistd.h>

#define REQUEST_PERMISSION 0x1023 /* of arch_prctl(2), for the state of tiles, number 18 */
#define SEEN() __asm__ volatile("" ::: "memory") /* what was written stands in memory; tile loads do not say they read it */

static int has_tiles;

/* Ask the system, which keeps the registers of tiles from a process until then. */
int64_t anymodal_use_tiles(int64_t wanted) {
    has_tiles = wanted && !syscall(SYS_arch_prctl, REQUEST_PERMISSION, 18);
    return has_tiles;
}

/* Put 64 bytes of a row, as 16 times the 4 bytes that meet in a sum, into its column of a tile. */
INLINE void scatter(char *tile, int64_t column, __m512i values) {
    const __m512i lines = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                             _mm512_set1_epi32(LINE));
    _mm512_i32scatter_epi32(tile + 4 * column, lines, values, 1);
}

INLINE __m512 widened(__m256i halves) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)); }

static void halve_floats(char *tile, int64_t row, const float *x, int64_t count) {
    float last[LINE / 2] = {0};
    if (count < LINE / 2) x = memcpy(last, x, (size_t)count * sizeof *x);
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + SIDE);
    const __m512i upper = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    const __m512 rest_a = _mm512_sub_ps(a, widened(_mm512_castsi512_si256(upper)));
    const __m512 rest_b = _mm512_sub_ps(b, widened(_mm512_extracti64x4_epi64(upper, 1)));
    scatter(tile, row, upper);
    scatter(tile, row + COLUMN_ROWS, (__m512i)_mm512_cvtne2ps_pbh(rest_b, rest_a));
}

static void halve_shorts(char *tile, int64_t row, const int16_t *x) {
    __m256i lower[2], upper[2];
    for (int i = 0; i < 2; i++) {
        const __m512i read = _mm512_loadu_si512(x + i * LINE / 2);
        lower[i] = _mm512_cvtepi16_epi8(read);
        upper[i] = _mm512_cvtepi16_epi8(_mm512_srai_epi16(_mm512_sub_epi16(read, _mm512_cvtepi8_epi16(lower[i])), 8));
    }
    scatter(tile, row, _mm512_inserti64x4(_mm512_castsi256_si512(upper[0]), upper[1], 1));
    scatter(tile, row + COLUMN_ROWS, _mm512_inserti64x4(_mm512_castsi256_si512(lower[0]), lower[1], 1));
}

/* Make tiles of x. */
static void tile_rows(product *p, float *room) {
    const int64_t along = tiles_along(p), groups = column_groups(p);
    char *tiles = (char *)(((uintptr_t)room + LINE - 1) / LINE * LINE);
    float *steps = (float *)(tiles + groups * along * TILE_BYTES);
    int16_t *rounded = (int16_t *)(steps + p->rows);
    if (p->rows % COLUMN_ROWS) memset(tiles + (groups - 1) * along * TILE_BYTES, 0, (size_t)(along * TILE_BYTES));
    for (int64_t r = 0; r < p->rows; r++) {
        const float *x = p->x + r * p->in;
        char *tile = tiles + r / COLUMN_ROWS * along * TILE_BYTES;
        if (p->kind == INT8) steps[r] = round_row(rounded, x, p->in);
        for (int64_t j = 0; j < along; j++, tile += TILE_BYTES) {
            if (p->kind == INT8)
                halve_shorts(tile, r % COLUMN_ROWS, rounded + j * LINE);
            else
                halve_floats(tile, r % COLUMN_ROWS, x + j * LINE / 2, p->in - j * LINE / 2);
        }
    }
    p->tiles = tiles;
    p->steps = p->kind == INT8 ? steps : NULL;
    SEEN();
}

/* Return where a tile of weights lies, and from output to output; what ends within it is copied, with zeros behind. */
INLINE const char *weights_of(const product *p, int64_t bytes, int64_t o, int64_t i, char *copy, int64_t *step) {
    const char *w = p->w + o * bytes + i;
    if (o + SIDE <= p->out && i + LINE <= bytes) {
        *step = bytes;
        return w;
    }
    const int64_t outs = p->out - o < SIDE ? p->out - o : SIDE, count = bytes - i < LINE ? bytes - i : LINE;
    memset(copy, 0, TILE_BYTES);
    for (int64_t b = 0; b < outs; b++) memcpy(copy + b * LINE, w + b * bytes, (size_t)count);
    SEEN();
    *step = LINE;
    return copy;
}

/* Add up the halves of a tile of sums, and store them times the steps of rows and the scales of outputs. */
INLINE void store_tile(const product *p, enum kind kind, const char *sums, int64_t group, int64_t o) {
    const __m512i lines = _mm512_set_epi32(240, 224, 208, 192, 176, 160, 144, 128, 112, 96, 80, 64, 48, 32, 16, 0);
    const int64_t outs = p->out - o < SIDE ? p->out - o : SIDE, r = group * COLUMN_ROWS;
    const __mmask16 kept = (__mmask16)((1u << outs) - 1);
    const __m512 scale = p->scale ? _mm512_maskz_loadu_ps(kept, p->scale + o) : _mm512_set1_ps(1);
    for (int64_t a = 0; a < COLUMN_ROWS && r + a < p->rows; a++) {
        __m512 sum;
        if (kind == INT8) {
            const __m512 upper = _mm512_cvtepi32_ps(_mm512_i32gather_epi32(lines, sums + 4 * a, 4));
            const __m512 lower = _mm512_cvtepi32_ps(_mm512_i32gather_epi32(lines, sums + 4 * (a + COLUMN_ROWS), 4));
            sum = _mm512_fmadd_ps(upper, _mm512_set1_ps(256), lower);
            sum = _mm512_mul_ps(sum, _mm512_set1_ps(p->steps[r + a]));
        } else {
            sum = _mm512_add_ps(_mm512_i32gather_ps(lines, sums + 4 * a, 4),
                                _mm512_i32gather_ps(lines, sums + 4 * (a + COLUMN_ROWS), 4));
        }
        _mm512_mask_storeu_ps(p->y + (r + a) * p->next + o, kept, _mm512_mul_ps(sum, scale));
    }
}

#define LOAD_WEIGHTS(tile, outputs) \
    do { \
        int64_t step; \
        const char *w = weights_of(p, bytes, outputs, j * LINE, copy, &step); \
        _tile_loadd(tile, w, step); \
    } while (0)
#define ADD(sum, weights, x) \
    do { \
        if (kind == INT8) \
            _tile_dpbssd(sum, weights, x); \
        else \
            _tile_dpbf16ps(sum, weights, x); \
    } while (0)
#define STORE(sum, group, outputs) \
    do { \
        _tile_stored(sum, sums, LINE); \
        if (outputs < p->out) store_tile(p, kind, sums, group, outputs); \
    } while (0)

#define OUTPUTS (4 * SIDE) /* that are passed before the next; behind the last output the last tile is computed again */

INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

/* Let the next outputs' weights come, in memory's order: of OUTPUTS * along lines so many as belong to one step along. */
INLINE void fetch_next(const char *next, int64_t j, int64_t count) {
    for (int64_t line = j * count; line < (j + 1) * count; line++) __builtin_prefetch(next + line * LINE, 0, 2);
}

/* OUTPUTS outputs of one group of rows. */
INLINE void wide_tiles(const product *p, enum kind kind, int64_t group, int64_t o, int fetches) {
    const int64_t bytes = p->in * (kind == INT8 ? 1 : 2), along = tiles_along(p), last = (p->out - 1) / SIDE * SIDE;
    const int64_t b = at_most(o + SIDE, last), c = at_most(o + 2 * SIDE, last), d = at_most(o + 3 * SIDE, last);
    const char *x = p->tiles + group * along * TILE_BYTES, *next = p->w + (o + OUTPUTS) * bytes;
    char copy[TILE_BYTES], sums[TILE_BYTES];
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t j = 0; j < along; j++) {
        if (fetches && bytes <= SHORT) fetch_next(next, j, OUTPUTS);
        _tile_loadd(6, x + j * TILE_BYTES, LINE);
        LOAD_WEIGHTS(4, o);
        ADD(0, 4, 6);
        LOAD_WEIGHTS(5, b);
        ADD(1, 5, 6);
        LOAD_WEIGHTS(4, c);
        ADD(2, 4, 6);
        LOAD_WEIGHTS(5, d);
        ADD(3, 5, 6);
    }
    STORE(0, group, o);
    STORE(1, group, o + SIDE);
    STORE(2, group, o + 2 * SIDE);
    STORE(3, group, o + 3 * SIDE);
}

/* Half as many outputs of two groups. */
INLINE void square_tiles(const product *p, enum kind kind, int64_t group, int64_t o, int fetches) {
    const int64_t bytes = p->in * (kind == INT8 ? 1 : 2), along = tiles_along(p), last = (p->out - 1) / SIDE * SIDE;
    const int64_t b = at_most(o + SIDE, last);
    const char *x = p->tiles + group * along * TILE_BYTES, *next = p->w + (o + OUTPUTS) * bytes;
    char copy[TILE_BYTES], sums[TILE_BYTES];
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t j = 0; j < along; j++) {
        if (fetches && bytes <= SHORT) fetch_next(next, j, OUTPUTS / 2);
        _tile_loadd(6, x + j * TILE_BYTES, LINE);
        _tile_loadd(7, x + (along + j) * TILE_BYTES, LINE);
        LOAD_WEIGHTS(4, o);
        ADD(0, 4, 6);
        ADD(1, 4, 7);
        LOAD_WEIGHTS(5, b);
        ADD(2, 5, 6);
        ADD(3, 5, 7);
    }
    STORE(0, group, o);
    STORE(1, group + 1, o);
    STORE(2, group, o + SIDE);
    STORE(3, group + 1, o + SIDE);
}

INLINE void tile_outputs_as(const product *p, enum kind kind, int64_t begin, int64_t end) {
    const int64_t groups = column_groups(p);
    for (int64_t o = begin; o < end; o += OUTPUTS) {
        int64_t group = 0;
        for (; group + 2 <= groups; group += 2) {
            square_tiles(p, kind, group, o, !group);
            if (o + 2 * SIDE < p->out) square_tiles(p, kind, group, o + 2 * SIDE, !group);
        }
        if (group < groups) wide_tiles(p, kind, group, o, !group);
    }
}

/* The outputs from `begin`, a multiple of OUTPUTS, on. */
static void tile_outputs(const product *p, int64_t begin, int64_t end) {
    struct {
        uint8_t palette, start, none[14];
        uint16_t columns[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        shape.columns[tile] = LINE;
        shape.rows[tile] = SIDE;
    }
    SEEN();
    _tile_loadconfig(&shape);
    if (p->kind == INT8)
        tile_outputs_as(p, INT8, begin, end);
    else
        tile_outputs_as(p, BFLOAT16, begin, end);
    _tile_release();
}

#else

enum { has_tiles = 0, OUTPUTS = BLOCK };

int64_t anymodal_use_tiles(int64_t wanted) {
    (void)wanted;
    return has_tiles;
}

static void tile_rows(product *p, float *room) { (void)p, (void)room; }
static void tile_outputs(const product *p, int64_t begin, int64_t end) { (void)p, (void)begin, (void)end; }

#endif

static void share(const product *p, int64_t thread, int64_t threads) {
    const int64_t unit = p->tiles ? OUTPUTS : BLOCK, units = (p->out + unit - 1) / unit;
    const int64_t begin = units * thread / threads * unit;
    int64_t end = units * (thread + 1) / threads * unit;
    if (end > p->out) end = p->out;
    if (p->tiles) {
        if (begin < end) tile_outputs(p, begin, end);
        return;
    }
    if (p->kind == FLOAT32) outputs(p, FLOAT32, begin, end);
    if (p->kind == BFLOAT16) outputs(p, BFLOAT16, begin, end);
    if (p->kind == INT8) int8_outputs(p, begin, end);
}

static void body(void *data) { share(data, thread_number(), thread_count()); }

/* `room` is for bfloat16 and int8: a line, and so many times 4 * in bytes, up to two whole lines, and 4, as there are
 * rows, up to whole groups of them. */
static void multiply(product p, int64_t threads, float *room) {
    p.step = p.in;
    if (has_tiles && p.kind != FLOAT32)
        tile_rows(&p, room);
    else if (p.kind == BFLOAT16)
        part_rows(&p, room);
    else if (p.kind == INT8)
        round_rows(&p, room);
    threads = worth(threads, p.in * p.out);
    if (threads > 1)
        parallel(body, &p, (unsigned)threads, 0);
    else
        share(&p, 0, 1);
}

void anymodal_linear(int64_t kind, int64_t threads, float *y, const float *x, const void *w, const float *scale,
                     int64_t rows, int64_t in, int64_t out, float *room) {
    const product p = {.kind = (enum kind)kind, .y = y, .x = x, .w = w, .scale = scale, .rows = rows, .in = in,
                       .out = out, .next = out};
    multiply(p, threads, room);
}
