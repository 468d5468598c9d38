/* All blocks of a transformer for a few new tokens in one call; compiled behind native_attention.c, as one with it.
 *
 * For few rows, handing tensors from operator to operator takes longer than reading the weights. Here what passes
 * between products stays in the nearest cache, and new keys and values go straight to where attention reads them.
 *
 * Whatever stands between products is computed a row at a time, in every row alike: as products and attention do, the
 * result of a row depends neither on the other rows nor on the number of threads.
 */

typedef struct {
    int64_t kind, in, out;
    const void *w;
    const float *scale, *bias; /* of every output, or NULL */
} matrix;

typedef struct {
    const float *weight, *bias; /* [heads, width] of LayerNorm; or [width] of RMSNorm and NULL; or NULL and NULL */
} head_norm;

typedef struct {
    const float *attention_norm, *feed_forward_norm;
    head_norm q_norm, k_norm;
    matrix qkv[3], o, gate_up[2], down; /* one below the other: of those without outputs there are none */
} block;

typedef struct {
    float *x;              /* [rows, queries, dim]: read, and written over */
    float *room;           /* [rows * queries, dim + qkv + 2 * hidden + the larger of heads * width and hidden + int8's] */
    const int64_t *places; /* [rows, queries] */
    char *keys, *values;
    const float *turns; /* [2, shown or more, width / 2]: cosines and sines of a place */
    const block *layers;
    const float *norm; /* behind the last block */
    int64_t rows, queries, depth, dim, heads, kv_heads, width, hidden, shown;
    int64_t layer_step, row_step, head_step, key_step; /* strides of keys and values */
    int64_t turn_step;                                 /* from cosines to sines */
    int64_t kept;                                      /* the kind of keys and values */
    int64_t swin;
    float eps, head_eps;
} stack;

/* What lies in `room`. */
typedef struct {
    float *h, *qkv, *gate_up, *mixed, *products;
} parts;

/* Multiply with matrices whose outputs stand side by side, `next` in a row. */
static void multiply_all(const matrix *m, int count, const parts *parts, float *y, int64_t next, const float *x,
                         int64_t rows, int64_t threads) {
    for (const matrix *end = m + count; m < end; y += m->out, m++) {
        const product p = {.kind = (enum kind)m->kind, .y = y, .x = x, .w = m->w, .scale = m->scale, .rows = rows,
                           .in = m->in, .out = m->out, .next = next};
        multiply(p, threads, parts->products);
        for (int64_t r = 0; m->bias && r < rows; r++)
            for (int64_t o = 0; o < m->out; o++) y[r * next + o] += m->bias[o];
    }
}

static void layer_norm(float *x, const float *weight, const float *bias, int64_t width, float eps) {
    float mean = 0, squares = 0;
    for (int64_t i = 0; i < width; i++) mean += x[i];
    mean /= (float)width;
    for (int64_t i = 0; i < width; i++) squares += (x[i] - mean) * (x[i] - mean);
    const float factor = 1 / __builtin_sqrtf(squares / (float)width + eps);
    for (int64_t i = 0; i < width; i++) x[i] = (x[i] - mean) * factor * weight[i] + bias[i];
}

/* Rotate the halves of a head against each other. */
static void turn(float *y, const float *x, const float *cosines, const float *sines, int64_t width) {
    const int64_t half = width / 2;
    for (int64_t i = 0; i < half; i++) {
        const float first = x[i], second = x[half + i];
        y[i] = first * cosines[i] - second * sines[i];
        y[half + i] = second * cosines[i] + first * sines[i];
    }
}

static void normalise_heads(const stack *s, const head_norm *norm, float *x, int64_t heads) {
    if (norm->weight && norm->bias)
        for (int64_t i = 0; i < heads * s->width; i += s->width)
            layer_norm(x + i, norm->weight + i, norm->bias + i, s->width, s->head_eps);
    else if (norm->weight)
        anymodal_rms_norm(x, x, norm->weight, heads, s->width, s->head_eps);
}

/* Keep numbers in the cache; in bfloat16, as the nearest, of two the even one. */
static void keep(enum kind kind, char *y, const float *x, int64_t width) {
    if (kind == FLOAT32) memcpy(y, x, (size_t)width * sizeof *x);
    for (int64_t i = 0; kind == BFLOAT16 && i < width; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
        const uint16_t half = (uint16_t)((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded); /* none stays none */
        memcpy(y + i * 2, &half, sizeof half);
    }
}

/* Make queries and keys of one token ready, and store its keys and values. */
static void place(const stack *s, const block *b, float *qkv, int64_t row, int64_t place, char *keys, char *values) {
    const enum kind kind = (enum kind)s->kept;
    const int64_t width = s->width, at = row * s->row_step + place * s->key_step, size = size_of(kind);
    const float *cosines = s->turns + place * (width / 2), *sines = cosines + s->turn_step;
    float *k = qkv + s->heads * width;
    const float *v = k + s->kv_heads * width;
    normalise_heads(s, &b->q_norm, qkv, s->heads);
    normalise_heads(s, &b->k_norm, k, s->kv_heads);
    for (float *head = qkv; head < v; head += width) turn(head, head, cosines, sines, width);
    for (int64_t head = 0; head < s->kv_heads; head++) {
        const int64_t to = (at + head * s->head_step) * size;
        keep(kind, keys + to, k + head * width, width);
        keep(kind, values + to, v + head * width, width);
    }
}

/* Attention from `x` to `y`, both [rows * queries, dim]. */
static void attend_block(const stack *s, const block *b, const parts *p, int64_t layer, float *y, const float *x,
                         int64_t threads) {
    const int64_t count = s->rows * s->queries, all = (s->heads + 2 * s->kv_heads) * s->width;
    const int64_t from = layer * s->layer_step * size_of((enum kind)s->kept);
    char *keys = s->keys + from, *values = s->values + from;
    multiply_all(b->qkv, 3, p, p->qkv, all, x, count, threads);
    for (int64_t i = 0; i < count; i++) place(s, b, p->qkv + i * all, i / s->queries, s->places[i], keys, values);
    const attention a = {.y = p->mixed, .q = p->qkv, .k = keys, .v = values, .places = s->places, .kind = s->kept,
                         .rows = s->rows,
                         .queries = s->queries, .heads = s->heads, .kv_heads = s->kv_heads, .width = s->width,
                         .shown = s->shown, .q_row = s->queries * all, .q_query = all, .q_head = s->width,
                         .k_row = s->row_step, .k_head = s->head_step, .k_key = s->key_step, .v_row = s->row_step,
                         .v_head = s->head_step, .v_key = s->key_step,
                         .scale = 1 / __builtin_sqrtf((float)s->width)};
    anymodal_attention(&a, threads);
    multiply_all(&b->o, 1, p, y, s->dim, p->mixed, count, threads);
}

/* gate * sigmoid(gate) * up. */
INLINE vector gated(vector gate, vector up) {
    const integers below = gate < 0;
    const vector small = exponential((vector)((integers)gate | (integers)splat(-0.0f))); /* exp(-|gate|) */
    const vector above = (vector)(((integers)small & below) | ((integers)splat(1) & ~below));
    return gate * (above / (small + 1.0f)) * up;
}

static void gate_row(float *y, const float *gate, const float *up, int64_t width) {
    const int64_t rest = width % LANES, whole = width - rest;
    for (int64_t i = 0; i < whole; i += LANES) {
        const vector v = gated(load_float32(gate + i), load_float32(up + i));
        memcpy(y + i, &v, sizeof v);
    }
    if (rest) {
        float last[2][LANES] = {0};
        memcpy(last[0], gate + whole, (size_t)rest * sizeof(float));
        memcpy(last[1], up + whole, (size_t)rest * sizeof(float));
        const vector v = gated(load_float32(last[0]), load_float32(last[1]));
        memcpy(y + whole, &v, (size_t)rest * sizeof(float));
    }
}

static void feed_forward(const stack *s, const block *b, const parts *p, float *y, const float *x, int64_t threads) {
    const int64_t count = s->rows * s->queries, hidden = s->hidden;
    multiply_all(b->gate_up, 2, p, p->gate_up, 2 * hidden, x, count, threads);
    for (int64_t i = 0; i < count; i++) {
        const float *gate = p->gate_up + 2 * i * hidden;
        gate_row(p->mixed + i * hidden, gate, gate + hidden, hidden);
    }
    multiply_all(&b->down, 1, p, y, s->dim, p->mixed, count, threads);
}

static void normalise(const stack *s, float *y, const float *x, const float *weight) {
    anymodal_rms_norm(y, x, weight, s->rows * s->queries, s->dim, s->eps);
}

static void add(const stack *s, const float *y) {
    for (int64_t i = 0; i < s->rows * s->queries * s->dim; i++) s->x[i] += y[i];
}

/* Return whether every token has a place that is shown; else nothing was written. */
int64_t anymodal_blocks(const stack *s, int64_t threads) {
    const int64_t count = s->rows * s->queries;
    for (int64_t i = 0; i < count; i++)
        if (s->places[i] < 0 || s->places[i] >= s->shown) return 0;
    float *h = s->room, *qkv = h + count * s->dim, *gate_up = qkv + count * (s->heads + 2 * s->kv_heads) * s->width;
    float *mixed = gate_up + 2 * count * s->hidden;
    const int64_t widest = s->heads * s->width > s->hidden ? s->heads * s->width : s->hidden;
    const parts p = {.h = h, .qkv = qkv, .gate_up = gate_up, .mixed = mixed, .products = mixed + count * widest};
    for (int64_t layer = 0; layer < s->depth; layer++) {
        const block *b = s->layers + layer;
        if (!s->swin) normalise(s, h, s->x, b->attention_norm);
        attend_block(s, b, &p, layer, h, s->swin ? s->x : h, threads);
        if (s->swin) normalise(s, h, h, b->attention_norm);
        add(s, h);
        if (!s->swin) normalise(s, h, s->x, b->feed_forward_norm);
        feed_forward(s, b, &p, h, s->swin ? s->x : h, threads);
        if (s->swin) normalise(s, h, h, b->feed_forward_norm);
        add(s, h);
    }
    normalise(s, s->x, s->x, s->norm);
    return 1;
}
