/* y[r, o] = scale[o] * sum_i x[r, i] * w[o, i] for a few rows of float32 x, and w in float32, bfloat16 or int8.
 *
 * At few rows the time goes into reading the weights, so a weight is read once and used for all rows. Registers hold a
 * tile of sums, rows x outputs; a block of outputs stays in the nearest cache while all rows pass it.
 *
 * A sum is a vector of partial sums that grows along i and is folded at the end, in every tile alike: the result of a
 * row depends neither on the other rows nor on the number of threads.
 *
 * Behind it stand RMSNorm and GELU; in native_int8.c, products with int8; in native_attention.c, attention to the cache,
 * which torch reads slowly for few queries; and in native_blocks.c all of a transformer for few rows.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif

#define BLOCK 8 /* outputs; the outputs of every tile divide it */
#define ROWS 4  /* of the largest tile */
#define LINE 64    /* bytes that memory hands over at once */
#define AHEAD 8192 /* bytes, at least, between what is read and what is fetched */
#define NEAR 6144  /* bytes of a tile's weights, of which the nearest cache holds two beside x */

/* With fewer, waking a thread takes longer than what it would do; keys and values count as weights. */
#define WEIGHTS_A_THREAD 65536

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))
#define UNROLL _Pragma("GCC unroll 8")

/* Compilers read an operand again for every use, and loads are what there is too little of: hold it in a register. */
#ifdef __AVX2__
#define HOLD(v) __asm__("" : "+v"(v))
#else
#define HOLD(v) (void)(v)
#endif

typedef float vector __attribute__((vector_size(LANES * 4)));
typedef float quarter __attribute__((vector_size(16)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));
typedef int32_t integers __attribute__((vector_size(LANES * 4)));
typedef uint16_t halves __attribute__((vector_size(LANES * 2)));

enum kind { FLOAT32, BFLOAT16, INT8 };

typedef struct {
    enum kind kind;
    float *y;
    const float *x;
    const char *w;
    const float *scale; /* of every output, or NULL */
    int64_t rows, in, out, next, step; /* next: from one row of y to the next; step: the same of x */
    const int16_t *rounded; /* x in whole steps, and the step of every row, for int8 */
    const float *steps;
    const char *tiles; /* x as native_tiles.c has it */
} product;

INLINE int64_t size_of(enum kind kind) { return kind == FLOAT32 ? 4 : 2; }

/* Weights in a register, and how many parts of LANES these are: of bfloat16, those in even places and those in odd ones,
 * which the bits of the register give at once; x lies in this order beside them. */
INLINE int64_t many_of(enum kind kind) { return kind == FLOAT32 ? LANES : 2 * LANES; }

INLINE vector part_of(enum kind kind, vector read, int part) {
    if (kind == FLOAT32) return read;
    return (vector)(part ? (words)read & 0xFFFF0000u : (words)read << 16);
}

INLINE vector load_float32(const void *p) {
    vector v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* A bfloat16 is the upper half of a float32. */
INLINE vector load_bfloat16(const void *p) {
#if defined(__AVX512F__)
    return (vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
#elif defined(__AVX2__)
    return (vector)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
#else
    halves v;
    memcpy(&v, p, sizeof v);
    return (vector)(__builtin_convertvector(v, words) << 16);
#endif
}

INLINE vector load(enum kind kind, const void *p) {
    return kind == FLOAT32 ? load_float32(p) : load_bfloat16(p);
}

/* Rounded once wherever it stands: GCC tuned for some CPUs multiplies and adds apart in loops with one sum alone. */
INLINE vector add_product(vector sum, vector a, vector b) {
#if defined(__AVX512F__)
    return (vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
    return sum + a * b;
#endif
}

INLINE float add_one_product(float sum, float a, float b) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return __builtin_fmaf(a, b, sum);
#else
    return sum + a * b;
#endif
}

INLINE float fold(vector v) {
    quarter parts[LANES / 4];
    memcpy(parts, &v, sizeof v);
#if LANES == 16
    parts[0] += parts[2];
    parts[1] += parts[3];
#endif
    const quarter sum = parts[0] + parts[1];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* The same of four vectors. */
INLINE quarter fold_four(const vector *v) {
#ifdef __AVX2__
    __m128 parts[4];
    UNROLL for (int i = 0; i < 4; i++) {
        quarter part[LANES / 4];
        memcpy(part, v + i, sizeof *v);
#if LANES == 16
        part[0] += part[2];
        part[1] += part[3];
#endif
        parts[i] = (__m128)(part[0] + part[1]);
    }
    return (quarter)_mm_hadd_ps(_mm_hadd_ps(parts[0], parts[1]), _mm_hadd_ps(parts[2], parts[3]));
#else
    return (quarter){fold(v[0]), fold(v[1]), fold(v[2]), fold(v[3])};
#endif
}

/* Fold the sums of a tile, and store them times the steps of rows and the scales of outputs: two outputs of a row at
 * once, or the only one. */
INLINE void store(const product *p, int rows, int outs, int64_t r, int64_t o, vector sums[ROWS][BLOCK]) {
    const float *steps = p->steps ? p->steps + r : NULL, *scale = p->scale ? p->scale + o : NULL;
    const int64_t next = p->next;
    float *y = p->y + r * next + o;
    if (outs == 1) *y = fold(sums[0][0]) * (steps ? *steps : 1) * (scale ? *scale : 1);
    UNROLL for (int s = 0; s + 4 <= rows * outs; s += 4) {
        const int a = s / outs, b = s % outs, c = (s + 2) / outs, d = (s + 2) % outs;
        const vector four[4] = {sums[a][b], sums[a][b + 1], sums[c][d], sums[c][d + 1]};
        quarter folded = fold_four(four);
        if (steps) folded *= (quarter){steps[a], steps[a], steps[c], steps[c]};
        if (scale) folded *= (quarter){scale[b], scale[b + 1], scale[d], scale[d + 1]};
        memcpy(y + a * next + b, &folded, sizeof folded / 2);
        memcpy(y + c * next + d, (const char *)&folded + sizeof folded / 2, sizeof folded / 2);
    }
}

/* Add what a whole vector does not fill, fold and store. Not inlined: a tile's loop needs all registers. */
NOINLINE void finish(const product *p, int rows, int outs, int64_t r, int64_t o, vector sums[ROWS][BLOCK]) {
    const int64_t many = many_of(p->kind), rest = p->in % many, whole = p->in - rest, size = size_of(p->kind);
    for (int b = 0; b < outs; b++) {
        for (int a = 0; a < rows && rest; a++) {
            char weight[LANES * 4] = {0};
            float read[2 * LANES] = {0};
            memcpy(weight, p->w + ((o + b) * p->in + whole) * size, (size_t)(rest * size));
            memcpy(read, p->x + (r + a) * p->step + whole, (size_t)(p->kind == FLOAT32 ? rest : many) * sizeof(float));
            for (int part = 0; part < many / LANES; part++)
                sums[a][b] += load_float32(read + part * LANES) * part_of(p->kind, load_float32(weight), part);
        }
    }
    store(p, rows, outs, r, o, sums);
}

/* Let weights come while others are multiplied: a line for each output, where a tile has come to weight i. They are
 * fetched in memory's order, which is not a tile's, and two tiles ahead: the first lines of all outputs of a tile are
 * read at once. In float32 too many would be on their way: there the same place of the next tile is fetched. */
INLINE void fetch_weights(enum kind kind, int rows, int outs, int64_t in, const char *w, int64_t i) {
    const int64_t size = kind == INT8 ? 1 : size_of(kind), bytes = outs * in * size;
    const int next = kind == FLOAT32 && rows <= 2;
    const int64_t least = kind == FLOAT32 ? 2 * AHEAD : AHEAD, far = 2 * bytes > least ? 2 * bytes : least;
    const char *ahead = next ? w + bytes + i * size : w + i * size * outs + far;
    UNROLL for (int b = 0; b < outs; b++, ahead += next ? in * size : LINE) {
        if (kind == FLOAT32 || bytes > NEAR)
            __builtin_prefetch(ahead, 0, 2);
        else
            __builtin_prefetch(ahead);
    }
}

/* `kind`, `rows` and `outs` are constants where this is inlined, so that the sums live in registers. */
INLINE void tile(const product *p, enum kind kind, int rows, int outs, int64_t r, int64_t o) {
    const int64_t in = p->in, many = many_of(kind), whole = in - in % many, size = size_of(kind), line = LINE / size;
    const int64_t step = p->step;
    const int parts = (int)(many / LANES), at_once = rows > 2 ? 1 : parts; /* with more rows registers run out */
    const float *x = p->x + r * step;
    const char *w = p->w + o * in * size;
    vector sums[ROWS][BLOCK], done[ROWS][BLOCK];
    UNROLL for (int a = 0; a < rows; a++) {
        UNROLL for (int b = 0; b < outs; b++) sums[a][b] = (vector){0};
    }
    for (int64_t i = 0; i < whole;) {
        const int64_t end = whole - i < line ? whole : i + line;
        fetch_weights(kind, rows, outs, in, w, i);
        for (; i < end; i += many) {
            UNROLL for (int first = 0; first < parts; first += at_once) {
                vector read[2][ROWS];
                UNROLL for (int c = 0; c < at_once; c++) {
                    UNROLL for (int a = 0; a < rows; a++) {
                        read[c][a] = load_float32(x + a * step + i + (first + c) * LANES);
                        HOLD(read[c][a]);
                    }
                }
                UNROLL for (int b = 0; b < outs; b++) {
                    vector weights = load_float32(w + (b * in + i) * size);
                    if (at_once > 1) HOLD(weights);
                    UNROLL for (int c = 0; c < at_once; c++) {
                        vector weight = part_of(kind, weights, first + c);
                        HOLD(weight);
                        UNROLL for (int a = 0; a < rows; a++) sums[a][b] += read[c][a] * weight;
                    }
                }
            }
        }
    }
    UNROLL for (int a = 0; a < rows; a++) {
        UNROLL for (int b = 0; b < outs; b++) done[a][b] = sums[a][b];
    }
    finish(p, rows, outs, r, o, done);
}

INLINE void block_of(const product *p, enum kind kind, int64_t o) {
    int64_t r = 0;
    for (; r + 4 <= p->rows; r += 4)
        for (int b = 0; b < BLOCK; b += 2) tile(p, kind, 4, 2, r, o + b);
    if (p->rows - r == 3)
        for (int b = 0; b < BLOCK; b += 4) tile(p, kind, 3, 4, r, o + b);
    if (p->rows - r == 2)
        for (int b = 0; b < BLOCK; b += 4) tile(p, kind, 2, 4, r, o + b);
    if (p->rows - r == 1) tile(p, kind, 1, BLOCK, r, o);
}

INLINE void outputs(const product *p, enum kind kind, int64_t begin, int64_t end) {
    int64_t o = begin;
    for (; o + BLOCK <= end; o += BLOCK) block_of(p, kind, o);
    for (; o < end; o++)
        for (int64_t r = 0; r < p->rows; r++) tile(p, kind, 1, 1, r, o);
}

/* The OpenMP that torch has loaded, handed over at run time: a second one would fight with it for the cores. */
static void (*parallel)(void (*body)(void *), void *data, unsigned threads, unsigned flags);
static int (*thread_number)(void), (*thread_count)(void);

void anymodal_use_openmp(void *gomp_parallel, void *omp_get_thread_num, void *omp_get_num_threads) {
    memcpy(&parallel, &gomp_parallel, sizeof parallel);
    memcpy(&thread_number, &omp_get_thread_num, sizeof thread_number);
    memcpy(&thread_count, &omp_get_num_threads, sizeof thread_count);
}

static int64_t worth(int64_t threads, int64_t weights) {
    return parallel && weights >= WEIGHTS_A_THREAD * threads ? threads : 1;
}

/* Put x in the order of bfloat16 weights: of every 2 * LANES, those in even places first; zeros behind its ends. */
static void part_rows(product *p, float *room) {
    const int64_t many = many_of(BFLOAT16), step = (p->in + many - 1) / many * many;
    for (int64_t r = 0; r < p->rows; r++) {
        const float *x = p->x + r * p->in;
        float *y = room + r * step;
        for (int64_t i = 0; i < step; i += many) {
            float last[2 * LANES] = {0};
            const float *read = x + i;
            if (p->in - i < many) read = memcpy(last, read, (size_t)(p->in - i) * sizeof(float));
            UNROLL for (int lane = 0; lane < LANES; lane++) {
                y[i + lane] = read[2 * lane];
                y[i + LANES + lane] = read[2 * lane + 1];
            }
        }
    }
    p->x = room;
    p->step = step;
}

/* y = x * (1 + erf(x / sqrt(2))) / 2. */
void anymodal_gelu(float *y, const float *x, int64_t count) {
    for (int64_t i = 0; i < count; i++) y[i] = 0.5f * x[i] * (1 + erff(x[i] * 0.70710678118654752f));
}

/* y[r, i] = weight[i] * x[r, i] / sqrt(mean_i x[r, i]^2 + eps), a row at a time. */
void anymodal_rms_norm(float *y, const float *x, const float *weight, int64_t rows, int64_t width, float eps) {
    const int64_t whole = width - width % LANES;
    for (; rows > 0; rows--, x += width, y += width) {
        vector squares = {0};
        for (int64_t i = 0; i < whole; i += LANES) {
            const vector read = load_float32(x + i);
            squares += read * read;
        }
        float sum = fold(squares);
        for (int64_t i = whole; i < width; i++) sum += x[i] * x[i];
        const float factor = 1 / __builtin_sqrtf(sum / (float)width + eps);
        for (int64_t i = 0; i < width; i++) y[i] = x[i] * factor * weight[i];
    }
}

static uint64_t mix_64(uint64_t x) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

static inline uint32_t mix_32(uint32_t x) {
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15) * 0x846CA68Bu;
    return x ^ x >> 16;
}

/* The uniform numbers that `gumbel` in noise.py turns into noise, to the last bit. */
void anymodal_uniform(float *y, const int64_t *seeds, const int64_t *positions, const int64_t *ids, int64_t rows,
                      int64_t count) {
    const uint64_t golden = 0x9E3779B97F4A7C15u;
    for (int64_t r = 0; r < rows; r++, y += count) {
        const uint64_t key = mix_64(mix_64((uint64_t)seeds[r] * golden) + (uint64_t)positions[r] * golden);
        const uint32_t low = (uint32_t)key, high = (uint32_t)(key >> 32);
        for (int64_t i = 0; i < count; i++) {
            const int32_t bits = (int32_t)(mix_32(mix_32((uint32_t)ids[i] * 0x9E3779B9u + low) + high) & 0x7FFFFFFFu);
            const float uniform = (float)bits * 0x1p-31f + 0x1p-32f;
            y[i] = uniform < 1 - 0x1p-23f ? uniform : 1 - 0x1p-23f;
        }
    }
}
