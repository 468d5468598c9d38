/* Products with int8 weights, in whole numbers; compiled behind native.c, as one with it.
 *
 * Widening weights to float32 takes longer than reading them. Instead a row of x is rounded to int16, symmetric, in
 * steps of its largest number / STEPS, and products of int16 are summed up in int32: exactly, in any order. That is off
 * by at most half a step of the row, times the sum of an output's absolute weights.
 *
 * A row is rounded alone, and sums become float32 after the same FLUSH weights in every tile: the result of a row depends
 * neither on the other rows nor on the number of threads.
 */

#define SHORTS (2 * LANES) /* in a register */
#define FLUSH 4032         /* weights; 2 * 128 * STEPS a lane and SHORTS of them stay below 2^31 */
#define STEPS 32639        /* to the largest number: both bytes of such an int16 are int8, where the lower has a sign */

typedef int16_t shorts __attribute__((vector_size(SHORTS * 2)));
typedef int8_t many_bytes __attribute__((vector_size(SHORTS)));

/* What stands in `room`: rows of int16 up to a whole line, zeros behind their ends, and then their steps. */
INLINE int64_t padded(int64_t in) { return (in + LINE - 1) / LINE * LINE; }

INLINE shorts load_shorts(const int16_t *p) {
    shorts v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE shorts load_weights(const int8_t *p) {
#if defined(__AVX512BW__)
    return (shorts)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__) && LANES == 8
    return (shorts)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
#else
    many_bytes v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, shorts);
#endif
}

/* Add the products of neighbours to every lane. */
INLINE integers add_products(integers sum, shorts a, shorts b) {
#if defined(__AVX512VNNI__)
    return (integers)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    return sum + (integers)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && LANES == 8
    return sum + (integers)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    const integers low = (((integers)a << 16) >> 16) * (((integers)b << 16) >> 16);
    return sum + low + ((integers)a >> 16) * ((integers)b >> 16);
#endif
}

/* Not inlined: every row is rounded by the same instructions. What is no number, or infinite, makes the step none. */
NOINLINE float round_row(int16_t *y, const float *x, int64_t in) {
    const int64_t whole = in - in % LANES;
    vector most = {0}, last = {0};
    integers fine = (most == most);
    memcpy(&last, x + whole, (size_t)(in - whole) * sizeof(float));
    for (int64_t i = 0; i < in; i += LANES) {
        const vector read = i < whole ? load_float32(x + i) : last;
        const vector size = (vector)((integers)read & 0x7FFFFFFF);
        const integers more = size > most;
        fine &= size <= 3.402823466e38f;
        most = (vector)(((integers)size & more) | ((integers)most & ~more));
    }
    float top = 0;
    int32_t all = -1;
    for (int lane = 0; lane < LANES; lane++) {
        top = most[lane] > top ? most[lane] : top;
        all &= fine[lane];
    }
    memset(y + whole, 0, (size_t)(padded(in) - whole) * sizeof *y);
    if (!all) {
        memset(y, 0, (size_t)whole * sizeof *y);
        return __builtin_nanf("");
    }
    const float step = top / STEPS > 1.175494351e-38f ? top / STEPS : 1.175494351e-38f, factor = 1 / step;
    const float shift = 12582912.0f; /* 1.5 * 2^23: the last bits of a sum with it are the nearest integer */
    for (int64_t i = 0; i < whole; i += LANES) {
        const integers rounded = (integers)(load_float32(x + i) * factor + shift) - 0x4B400000;
        for (int lane = 0; lane < LANES; lane++) y[i + lane] = (int16_t)rounded[lane];
    }
    const integers rounded = (integers)(last * factor + shift) - 0x4B400000;
    for (int64_t i = whole; i < in; i++) y[i] = (int16_t)rounded[i - whole];
    return step;
}

static void round_rows(product *p, float *room) {
    const int64_t step = padded(p->in);
    int16_t *rounded = (int16_t *)room;
    float *steps = room + p->rows * step / 2;
    for (int64_t r = 0; r < p->rows; r++) steps[r] = round_row(rounded + r * step, p->x + r * p->in, p->in);
    p->rounded = rounded;
    p->steps = steps;
}

/* `rows` and `outs` are constants where this is inlined, so that the sums live in registers. */
INLINE void int8_tile(const product *p, int rows, int outs, int64_t r, int64_t o) {
    const int64_t in = p->in, step = padded(in), whole = in - in % SHORTS;
    const int16_t *x = p->rounded + r * step;
    const int8_t *w = (const int8_t *)p->w + o * in;
    vector done[ROWS][BLOCK];
    UNROLL for (int a = 0; a < rows; a++) {
        UNROLL for (int b = 0; b < outs; b++) done[a][b] = (vector){0};
    }
    for (int64_t begin = 0; begin < in; begin += FLUSH) {
        const int64_t stop = whole - begin < FLUSH ? whole : begin + FLUSH;
        integers sums[ROWS][BLOCK];
        UNROLL for (int a = 0; a < rows; a++) {
            UNROLL for (int b = 0; b < outs; b++) sums[a][b] = (integers){0};
        }
        for (int64_t i = begin; i < stop;) {
            const int64_t end = stop - i < LINE ? stop : i + LINE;
            fetch_weights(INT8, rows, outs, in, (const char *)w, i);
            for (; i < end; i += SHORTS) {
                shorts read[ROWS];
                UNROLL for (int a = 0; a < rows; a++) {
                    read[a] = load_shorts(x + a * step + i);
                    HOLD(read[a]);
                }
                UNROLL for (int b = 0; b < outs; b++) {
                    shorts weight = load_weights(w + b * in + i);
                    HOLD(weight);
                    UNROLL for (int a = 0; a < rows; a++) sums[a][b] = add_products(sums[a][b], read[a], weight);
                }
            }
        }
        if (whole < in && begin + FLUSH >= in) {
            UNROLL for (int b = 0; b < outs; b++) {
                int8_t rest[SHORTS] = {0};
                memcpy(rest, w + b * in + whole, (size_t)(in - whole));
                const shorts weight = load_weights(rest);
                UNROLL for (int a = 0; a < rows; a++)
                    sums[a][b] = add_products(sums[a][b], load_shorts(x + a * step + whole), weight);
            }
        }
        UNROLL for (int a = 0; a < rows; a++) {
            UNROLL for (int b = 0; b < outs; b++) done[a][b] += __builtin_convertvector(sums[a][b], vector);
        }
    }
    store(p, rows, outs, r, o, done);
}

INLINE void int8_block(const product *p, int64_t o) {
    int64_t r = 0;
    for (; r + 4 <= p->rows; r += 4)
        for (int b = 0; b < BLOCK; b += 2) int8_tile(p, 4, 2, r, o + b);
    if (p->rows - r == 3)
        for (int b = 0; b < BLOCK; b += 4) int8_tile(p, 3, 4, r, o + b);
    if (p->rows - r == 2)
        for (int b = 0; b < BLOCK; b += 4) int8_tile(p, 2, 4, r, o + b);
    if (p->rows - r == 1) int8_tile(p, 1, BLOCK, r, o);
}

static void int8_outputs(const product *p, int64_t begin, int64_t end) {
    int64_t o = begin;
    for (; o + BLOCK <= end; o += BLOCK) int8_block(p, o);
    for (; o < end; o++)
        for (int64_t r = 0; r < p->rows; r++) int8_tile(p, 1, 1, r, o);
}
