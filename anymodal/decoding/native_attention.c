/* Attention of a few queries to a cache of keys and values in float32 or bfloat16; compiled behind native.c, as one
 * with it.
 *
 * At few queries the time goes into reading keys and values. A block of them is read once for a tile of queries: those
 * of all heads that share it, and of neighbouring positions. Softmax keeps a running maximum from block to block (Milakov
 * and Gimelshein, arXiv:1805.02867), so what is kept does not grow with the cache.
 *
 * Blocks begin at the first key and sums grow along keys, in every tile alike: the result of a query depends neither on
 * the other queries and rows, nor on how much cache is shown, nor on the number of threads. What a query does not see is
 * never multiplied with, not even with zero: it may be no number.
 */

#define KEYS 64   /* of a block */
#define QUERIES 4 /* of the largest tile */
#define TILE LANES /* sums that registers hold: a processor with wide ones has more of them */
#define MOST 8     /* of one query */
#define BESIDE(queries) (TILE / (queries) < MOST ? TILE / (queries) : MOST)

typedef struct {
    float *y; /* [rows, queries, heads, width] */
    const float *q;
    const char *k, *v;
    const int64_t *places; /* [rows, queries]: the last key that a query sees */
    int64_t kind; /* of keys and values */
    int64_t rows, queries, heads, kv_heads, width, shown;
    int64_t q_row, q_query, q_head, k_row, k_head, k_key, v_row, v_head, v_key; /* strides */
    float scale;
} attention;

typedef struct {
    const float *q[QUERIES];
    const char *k, *v, *next, *ahead; /* next: the keys that the next tile reads; ahead: those of the next block */
    float *y[QUERIES];
    int64_t ends[QUERIES], most; /* keys that each sees, and the largest of them */
    float top[QUERIES], total[QUERIES];
    float weights[QUERIES][KEYS];
} tile_of_queries;

INLINE vector splat(float value) {
    vector v;
    for (int lane = 0; lane < LANES; lane++) v[lane] = value;
    return v;
}

/* exp of what is not above zero, to the last bits (Cephes' polynomial); what is no number stays so. */
INLINE vector exponential(vector x) {
    const vector shift = splat(12582912.0f); /* 1.5 * 2^23: the sum's last bits are the nearest integer */
    const vector shifted = x * 1.44269504088896341f + shift, whole = shifted - shift;
    const vector r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    p *= (vector)(((words)shifted + 127) << 23);
    return (vector)((integers)p & ~(x < -87.0f));
}

INLINE float exponential_of(float x) { return exponential(splat(x))[0]; }

INLINE float load_one(enum kind kind, const char *p) {
    uint16_t half;
    uint32_t bits;
    float value;
    if (kind == FLOAT32) {
        memcpy(&value, p, sizeof value);
        return value;
    }
    memcpy(&half, p, sizeof half);
    bits = (uint32_t)half << 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Let a key or value come while something else is computed: memory is slow, and their order is not what it expects. */
INLINE void fetch(const char *p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += LINE) __builtin_prefetch(p + i, 0, 2);
}

/* Scores of keys from `begin + b`; keys behind the last that any query sees are read as that one. */
INLINE void score(const attention *p, tile_of_queries *t, enum kind kind, int queries, int keys, int64_t begin,
                  int64_t b) {
    const int64_t width = p->width, whole = width - width % LANES, size = size_of(kind);
    vector sums[QUERIES][TILE];
    const char *k[TILE];
    UNROLL for (int c = 0; c < keys; c++) {
        const int64_t key = begin + b + c < t->most ? begin + b + c : t->most - 1;
        k[c] = t->k + key * p->k_key * size;
        UNROLL for (int a = 0; a < queries; a++) sums[a][c] = splat(0);
    }
    for (int64_t i = 0; i < whole; i += LANES) {
        vector read[QUERIES];
        UNROLL for (int a = 0; a < queries; a++) {
            read[a] = load_float32(t->q[a] + i);
            HOLD(read[a]);
        }
        UNROLL for (int c = 0; c < keys; c++) {
            vector key = load(kind, k[c] + i * size);
            if (queries > 1) HOLD(key);
            UNROLL for (int a = 0; a < queries; a++) sums[a][c] = add_product(sums[a][c], read[a], key);
        }
    }
    float folded[TILE];
    UNROLL for (int s = 0; s < queries * keys; s += 4) {
        vector four[4];
        UNROLL for (int i = 0; i < 4; i++) four[i] = sums[(s + i) / keys][(s + i) % keys];
        const quarter sums_of_four = fold_four(four);
        memcpy(folded + s, &sums_of_four, sizeof sums_of_four);
    }
    UNROLL for (int a = 0; a < queries; a++) {
        UNROLL for (int c = 0; c < keys; c++) {
            float sum = folded[a * keys + c];
            for (int64_t i = whole; i < width; i++) sum = add_one_product(sum, t->q[a][i], load_one(kind, k[c] + i * size));
            t->weights[a][b + c] = sum * p->scale;
        }
    }
}

/* Turn the scores of a query's `count` keys into weights, and what it has summed so far with the old maximum. */
NOINLINE void weigh(const attention *p, tile_of_queries *t, int a, int64_t count) {
    float *weights = t->weights[a], top = t->top[a];
    for (int64_t c = count; c % LANES; c++) weights[c] = -__builtin_inff();
    vector tops = splat(top), sums = splat(0);
    for (int64_t c = 0; c < count; c += LANES) {
        const vector scores = load_float32(weights + c);
        const integers more = scores > tops;
        tops = (vector)(((integers)scores & more) | ((integers)tops & ~more));
    }
    for (int lane = 0; lane < LANES; lane++) top = tops[lane] > top ? tops[lane] : top;
    const float shift = top == -__builtin_inff() ? 0 : top;
    for (int64_t c = 0; c < count; c += LANES) {
        const vector weight = exponential(load_float32(weights + c) - shift);
        memcpy(weights + c, &weight, sizeof weight);
        sums += weight;
    }
    const float kept = exponential_of(t->top[a] - shift);
    t->total[a] = t->total[a] * kept + fold(sums);
    t->top[a] = top;
    if (kept != 1)
        for (int64_t d = 0; d < p->width; d++) t->y[a][d] *= kept;
}

/* Add weighted values [from, to) of a block to features [d, d + vectors) of queries [a, a + queries). */
INLINE void mix(const attention *p, tile_of_queries *t, enum kind kind, int a, int queries, int vectors, int64_t d,
                const char *v, int64_t from, int64_t to) {
    const int64_t size = size_of(kind);
    vector sums[QUERIES][TILE];
    UNROLL for (int b = 0; b < queries; b++) {
        UNROLL for (int c = 0; c < vectors; c++) sums[b][c] = load_float32(t->y[a + b] + d + c * LANES);
    }
    for (int64_t key = from; key < to; key++) {
        vector read[TILE];
        if (d == 0 && t->ahead) fetch(t->ahead + key * p->k_key * size, p->width * size);
        UNROLL for (int c = 0; c < vectors; c++) read[c] = load(kind, v + (key * p->v_key + d + c * LANES) * size);
        UNROLL for (int b = 0; b < queries; b++) {
            vector weight = splat(t->weights[a + b][key]);
            UNROLL for (int c = 0; c < vectors; c++) sums[b][c] = add_product(sums[b][c], weight, read[c]);
        }
    }
    UNROLL for (int b = 0; b < queries; b++) {
        UNROLL for (int c = 0; c < vectors; c++) memcpy(t->y[a + b] + d + c * LANES, &sums[b][c], sizeof(vector));
    }
}

INLINE void mix_all(const attention *p, tile_of_queries *t, enum kind kind, int a, int queries, const char *v,
                    int64_t from, int64_t to) {
    const int64_t size = size_of(kind);
    int64_t d = 0; /* as many vectors at once as there are: a sum alone waits for itself */
    UNROLL for (int vectors = BESIDE(queries); vectors; vectors /= 2)
        for (; d + vectors * LANES <= p->width; d += vectors * LANES) mix(p, t, kind, a, queries, vectors, d, v, from, to);
    for (; d < p->width; d++)
        for (int b = a; b < a + queries; b++)
            for (int64_t key = from; key < to; key++)
                t->y[b][d] = add_one_product(t->y[b][d], t->weights[b][key],
                                             load_one(kind, v + (key * p->v_key + d) * size));
}

/* Not inlined: all tiles of one query add by the same instructions. */
NOINLINE void mix_one(const attention *p, tile_of_queries *t, int a, const char *v, int64_t from, int64_t to) {
    if (p->kind == FLOAT32) mix_all(p, t, FLOAT32, a, 1, v, from, to);
    if (p->kind == BFLOAT16) mix_all(p, t, BFLOAT16, a, 1, v, from, to);
}

INLINE void attend(const attention *p, tile_of_queries *t, enum kind kind, int queries) {
    const int64_t size = size_of(kind), of_key = p->k_key * size, of_value = p->v_key * size;
    for (int64_t begin = 0; begin < t->most; begin += KEYS) {
        const char *v = t->v + begin * of_value;
        const int64_t shown = t->most - begin < KEYS ? t->most - begin : KEYS;
        for (int64_t b = 0; b < shown; b += BESIDE(queries)) {
            for (int64_t key = b; key < b + BESIDE(queries) && key < shown; key++)
                fetch(v + key * of_value, p->width * size);
            score(p, t, kind, queries, BESIDE(queries), begin, b);
        }
        t->ahead = t->most - begin > KEYS ? t->k + (begin + KEYS) * of_key : t->next;
        int64_t counts[QUERIES], common = KEYS;
        for (int a = 0; a < queries; a++) {
            counts[a] = t->ends[a] - begin < shown ? t->ends[a] - begin : shown;
            if (counts[a] > 0) weigh(p, t, a, counts[a]);
            common = counts[a] < common ? counts[a] : common;
        }
        if (queries == 1 || common <= 0)
            common = 0;
        else
            mix_all(p, t, kind, 0, queries, v, 0, common);
        for (int a = 0; a < queries; a++)
            if (counts[a] > common) mix_one(p, t, a, v, common, counts[a]);
    }
    for (int a = 0; a < queries; a++)
        for (int64_t d = 0; d < p->width; d++) t->y[a][d] /= t->total[a];
}

INLINE void attend_as(const attention *p, tile_of_queries *t, enum kind kind, int queries) {
    if (queries == 4) attend(p, t, kind, 4);
    if (queries == 2) attend(p, t, kind, 2);
    if (queries == 1) attend(p, t, kind, 1);
}

static void attend_share(const attention *p, int64_t thread, int64_t threads) {
    const int64_t size = size_of((enum kind)p->kind);
    const int64_t items = p->rows * p->kv_heads, group = p->heads / p->kv_heads, all = p->queries * group;
    const int64_t end = items * (thread + 1) / threads;
    for (int64_t item = items * thread / threads; item < end; item++) {
        const int64_t row = item / p->kv_heads, kv_head = item % p->kv_heads;
        for (int64_t first = 0; first < all;) {
            tile_of_queries t = {.k = p->k + (row * p->k_row + kv_head * p->k_head) * size,
                                 .v = p->v + (row * p->v_row + kv_head * p->v_head) * size};
            const int queries = all - first >= 4 ? 4 : all - first >= 2 ? 2 : 1;
            for (int a = 0; a < queries; a++) {
                const int64_t query = (first + a) / group, head = kv_head * group + (first + a) % group;
                t.q[a] = p->q + row * p->q_row + query * p->q_query + head * p->q_head;
                t.y[a] = p->y + ((row * p->queries + query) * p->heads + head) * p->width;
                t.ends[a] = p->places[row * p->queries + query] + 1;
                t.most = t.ends[a] > t.most ? t.ends[a] : t.most;
                t.top[a] = -__builtin_inff();
                memset(t.y[a], 0, (size_t)p->width * sizeof(float));
            }
            first += queries;
            if (first == all && item + 1 < end) {
                const int64_t next = item + 1;
                t.next = p->k + (next / p->kv_heads * p->k_row + next % p->kv_heads * p->k_head) * size;
            }
            if (p->kind == FLOAT32) attend_as(p, &t, FLOAT32, queries);
            if (p->kind == BFLOAT16) attend_as(p, &t, BFLOAT16, queries);
        }
    }
}

static void attend_body(void *data) { attend_share(data, thread_number(), thread_count()); }

/* Return whether every query sees a key, and none that is not shown. */
int64_t anymodal_attention(const attention *p, int64_t threads) {
    for (int64_t i = 0; i < p->rows * p->queries; i++)
        if (p->places[i] < 0 || p->places[i] >= p->shown) return 0;
    threads = worth(threads, 2 * p->rows * p->kv_heads * p->shown * p->width);
    if (threads > 1)
        parallel(attend_body, (void *)p, (unsigned)threads, 0);
    else
        attend_share(p, 0, 1);
    return 1;
}
