#include "cache/validate.h"

#include <stdio.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/mem.h"

/* The page format of LMDB 0.9 (data version 1), little endian, 64 bits:
 *
 *   page   0 pgno u64 | 8 pad u16 | 10 flags u16 | 12 lower u16, 14 upper u16 (or, on the first page of a large value, 12 pages u32) | 16 node offsets u16 ...
 *   node   0 low u16 | 2 high u16 | 4 flags u16 | 6 key size u16 | 8 key, then data          low, high: size of the data, or with flags the child's page
 *   tree   0 pad u32 | 4 flags u16 | 6 depth u16 | 8 branch pages | 16 leaf pages | 24 overflow pages | 32 entries | 40 root page
 *   meta   16 magic u32 | 20 version u32 | 24 address | 32 map size | 40 free tree | 88 main tree | 136 last page | 144 transaction  */
enum { PAGE = 4096, PAGE_HEAD = 16, NODE_HEAD = 8, TREE_BYTES = 48, MAX_KEY = 511, MAX_DEPTH = 32, UNITS = PAGE / 2 };
enum { P_BRANCH = 1, P_LEAF = 2, P_OVERFLOW = 4, P_META = 8, F_BIGDATA = 1, F_SUBDATA = 2 };
enum { META_FLAGS = 0x4008 }; /* MDB_NOSUBDIR | the free list's integer keys: what every file of this project carries */
#define NO_PAGE UINT64_MAX

typedef struct tree {
    uint16_t flags, depth;
    uint64_t branch, leaf, overflow, entries, root;
} tree;

typedef enum tree_kind { FREE_TREE, MAIN_TREE, DATA_TREE } tree_kind;

typedef struct walk {
    const uint8_t *map;
    uint64_t size, pages; /* bytes of the file; pages that the meta page knows */
    const char *path;
    int sealed;
    uint8_t *used;        /* a bit for each page */
    kd_lmdb_facts *facts;
    /* of the tree that is being walked */
    tree_kind kind;
    kd_db db;
    const char *name;
    tree seen;            /* counted */
    const uint8_t *last_key;
    size_t last_size;
    tree sub[KD_DBS];
    int has_sub[KD_DBS];
    kd_err *err;
} walk;

typedef struct node {
    const uint8_t *key, *data;
    size_t key_size, data_size, bytes; /* bytes: of the whole node, even */
    unsigned flags;
    uint64_t child; /* branch nodes, and the first page of a large value */
} node;

static uint16_t u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t u32(const uint8_t *p)
{
    return u16(p) | (uint32_t)u16(p + 2) << 16;
}

static uint64_t u64(const uint8_t *p)
{
    return u32(p) | (uint64_t)u32(p + 4) << 32;
}

static kd_status damaged(walk *w, uint64_t page, const char *fmt, ...) KD_PRINTF(3, 4);
static kd_status damaged(walk *w, uint64_t page, const char *fmt, ...)
{
    char what[200];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    return kd_fail(w->err, KD_EDAMAGED, "%s: page %llu (byte %llu): %s; the file is damaged: %s", w->path, (unsigned long long)page,
                   (unsigned long long)(page * PAGE), what,
                   w->sealed ? "copy it again from where it came, or remove it and run kd-precompute again" : "remove it and run kd-precompute again");
}

static kd_status use_pages(walk *w, uint64_t first, uint64_t count)
{
    if (first < 2 || first >= w->pages || count > w->pages - first)
        return damaged(w, first, "pages %llu..+%llu lie outside the %llu pages in use", (unsigned long long)first, (unsigned long long)count, (unsigned long long)w->pages);
    for (uint64_t p = first; p < first + count; p++) {
        if (w->used[p / 8] & 1u << p % 8)
            return damaged(w, p, "it is used twice");
        w->used[p / 8] |= (uint8_t)(1u << p % 8);
    }
    return KD_OK;
}

static tree read_tree(const uint8_t *p)
{
    tree t = {u16(p + 4), u16(p + 6), u64(p + 8), u64(p + 16), u64(p + 24), u64(p + 32), u64(p + 40)};
    return t;
}

/* Key orders of LMDB: the free list's keys are native integers, all others compare as bytes, a prefix first. */
static int compare_keys(const walk *w, const uint8_t *a, size_t na, const uint8_t *b, size_t nb)
{
    int c;
    if (w->kind == FREE_TREE)
        return u64(a) < u64(b) ? -1 : u64(a) > u64(b);
    c = memcmp(a, b, na < nb ? na : nb);
    return c ? c : na < nb ? -1 : na > nb;
}

static int key_size_ok(const walk *w, size_t n)
{
    static const uint8_t sizes[KD_DBS] = {0, 16, 20, 22, 22, 22, 22, 22, 22, 22};
    if (w->kind == FREE_TREE)
        return n == 8;
    if (w->kind == DATA_TREE && sizes[w->db])
        return n == sizes[w->db];
    return n >= 1 && n <= MAX_KEY;
}

/* Reads node i of the page, marks the bytes that it takes in `taken` (a bit for two bytes) and refuses overlaps. */
static kd_status read_node(walk *w, uint64_t pgno, int i, int is_leaf, node *n, uint8_t *taken)
{
    const uint8_t *page = w->map + pgno * PAGE, *p;
    size_t at = u16(page + PAGE_HEAD + 2 * i), upper = u16(page + 14);
    if (at < upper || at % 2 != 0 || at + NODE_HEAD > PAGE)
        return damaged(w, pgno, "node %d starts at byte %zu, outside %zu..%d", i, at, upper, PAGE);
    p = page + at;
    n->flags = u16(p + 4);
    n->key_size = u16(p + 6);
    n->key = p + NODE_HEAD;
    n->data = n->key + n->key_size;
    n->data_size = 0;
    n->bytes = NODE_HEAD + n->key_size;
    n->child = NO_PAGE;
    if (is_leaf) {
        n->data_size = u32(p);
        if (n->flags & F_BIGDATA)
            n->bytes += 8;
        else if (n->data_size <= PAGE)
            n->bytes += n->data_size;
        else
            return damaged(w, pgno, "node %d holds %zu bytes inside a page", i, n->data_size);
    } else {
        n->child = u32(p) | (uint64_t)n->flags << 32;
    }
    n->bytes += n->bytes % 2;
    if (at + n->bytes > PAGE)
        return damaged(w, pgno, "node %d at byte %zu needs %zu bytes, beyond the page", i, at, n->bytes);
    if (is_leaf && (n->flags & F_BIGDATA))
        n->child = u64(n->data);
    for (size_t unit = at / 2; unit < (at + n->bytes) / 2; unit++) {
        if (taken[unit / 8] & 1u << unit % 8)
            return damaged(w, pgno, "node %d overlaps another one", i);
        taken[unit / 8] |= (uint8_t)(1u << unit % 8);
    }
    return KD_OK;
}

/* The list of one transaction's freed pages: LMDB would write new data over them. */
static kd_status check_free_list(walk *w, uint64_t pgno, const uint8_t *data, size_t size)
{
    uint64_t n = size >= 8 ? u64(data) : 0;
    if (size < 8 || n > size / 8 - 1)
        return damaged(w, pgno, "a list of %llu free pages doesn't fit into its %zu bytes", (unsigned long long)n, size);
    for (uint64_t i = 0; i < n; i++)
        KD_TRY(use_pages(w, u64(data + 8 + 8 * i), 1));
    return KD_OK;
}

static kd_status check_sub_tree(walk *w, uint64_t pgno, const node *n)
{
    for (int i = 0; i < KD_DBS; i++) {
        if (n->key_size == strlen(kd_db_names[i]) && memcmp(n->key, kd_db_names[i], n->key_size) == 0) {
            if (n->flags != F_SUBDATA || n->data_size != TREE_BYTES)
                return damaged(w, pgno, "the entry of database \"%s\" has flags %u and %zu bytes", kd_db_names[i], n->flags, n->data_size);
            w->sub[i] = read_tree(n->data);
            w->has_sub[i] = 1;
            return KD_OK;
        }
    }
    return damaged(w, pgno, "a database of an unknown name; a newer kdcache may have written it");
}

static kd_status check_leaf_node(walk *w, uint64_t pgno, int i, const node *n)
{
    const uint8_t *data = n->data;
    uint64_t data_at = (uint64_t)(n->data - w->map);
    if (!key_size_ok(w, n->key_size))
        return damaged(w, pgno, "node %d has a key of %zu bytes", i, n->key_size);
    if (w->last_key && compare_keys(w, w->last_key, w->last_size, n->key, n->key_size) >= 0)
        return damaged(w, pgno, "the key of node %d isn't above the one before it", i);
    w->last_key = n->key;
    w->last_size = n->key_size;
    w->seen.entries++;
    if (w->kind == MAIN_TREE)
        return check_sub_tree(w, pgno, n);
    if (n->flags & ~(unsigned)F_BIGDATA)
        return damaged(w, pgno, "node %d has flags %u", i, n->flags);
    if (n->flags & F_BIGDATA) {
        uint64_t count = (PAGE_HEAD + (uint64_t)n->data_size + PAGE - 1) / PAGE;
        KD_TRY(use_pages(w, n->child, count));
        w->seen.overflow += count;
        data_at = n->child * PAGE + PAGE_HEAD;
        data = w->map + data_at;
        if (w->kind == FREE_TREE || w->db == KD_DB_META) { /* few, and LMDB may take their pages back: believe nothing */
            const uint8_t *head = w->map + n->child * PAGE;
            if (u64(head) != n->child || u16(head + 10) != P_OVERFLOW || u32(head + 12) != count)
                return damaged(w, n->child, "the head of a large value says page %llu, flags %u, %u pages", (unsigned long long)u64(head), u16(head + 10), u32(head + 12));
        }
    }
    if (w->kind == FREE_TREE)
        return check_free_list(w, pgno, data, n->data_size);
    if (w->db == KD_DB_META && w->facts->first_value_at == 0)
        w->facts->first_value_at = data_at;
    return KD_OK;
}

static kd_status check_page_head(walk *w, uint64_t pgno, int is_leaf, int *count)
{
    const uint8_t *page = w->map + pgno * PAGE;
    unsigned flags = u16(page + 10), lower = u16(page + 12), upper = u16(page + 14);
    int least = is_leaf || w->kind == FREE_TREE ? 1 : 2;
    if (u64(page) != pgno)
        return damaged(w, pgno, "it says that it is page %llu", (unsigned long long)u64(page));
    if (flags != (is_leaf ? P_LEAF : P_BRANCH))
        return damaged(w, pgno, "flags %u where a %s of \"%s\" should be", flags, is_leaf ? "leaf" : "branch", w->name);
    if (lower < PAGE_HEAD || lower > upper || upper > PAGE || lower % 2 != 0)
        return damaged(w, pgno, "its free space is %u..%u", lower, upper);
    *count = (int)(lower - PAGE_HEAD) / 2;
    if (*count < least)
        return damaged(w, pgno, "%d nodes", *count);
    return KD_OK;
}

typedef struct span {
    const uint8_t *key;
    size_t size;
} span;

static kd_status check_separator(walk *w, uint64_t pgno, int i, const node *n)
{
    if (w->kind != FREE_TREE && (!key_size_ok(w, n->key_size) || compare_keys(w, w->last_key, w->last_size, n->key, n->key_size) >= 0))
        return damaged(w, pgno, "separator %d isn't above the keys before it", i);
    return KD_OK;
}

/* height: 1 for leaves. *first: the lowest key below this page. */
static kd_status walk_page(walk *w, uint64_t pgno, int height, span *first)
{
    uint8_t taken[UNITS / 8] = {0};
    int is_leaf = height == 1, count = 0;
    KD_TRY(use_pages(w, pgno, 1));
    KD_TRY(check_page_head(w, pgno, is_leaf, &count));
    if (is_leaf)
        w->seen.leaf++;
    else
        w->seen.branch++;
    for (int i = 0; i < count; i++) {
        node n = {0};
        span low = {0};
        KD_TRY(read_node(w, pgno, i, is_leaf, &n, taken));
        if (is_leaf) {
            KD_TRY(check_leaf_node(w, pgno, i, &n));
            low.key = n.key;
            low.size = n.key_size;
        } else {
            if (i > 0) /* a search doesn't look at separator 0 */
                KD_TRY(check_separator(w, pgno, i, &n));
            KD_TRY(walk_page(w, n.child, height - 1, &low));
            if (i > 0 && w->kind != FREE_TREE && compare_keys(w, n.key, n.key_size, low.key, low.size) > 0)
                return damaged(w, pgno, "separator %d is above the keys that it leads to", i);
        }
        if (i == 0)
            *first = low;
    }
    return KD_OK;
}

static kd_status walk_tree(walk *w, const tree *t, tree_kind kind, kd_db db, const char *name)
{
    unsigned want_flags = kind == FREE_TREE ? META_FLAGS : 0;
    span first;
    w->kind = kind;
    w->db = db;
    w->name = name;
    w->last_key = NULL;
    memset(&w->seen, 0, sizeof w->seen);
    if (t->flags != want_flags || t->depth > MAX_DEPTH || (t->root == NO_PAGE) != (t->depth == 0))
        return damaged(w, 0, "the root of \"%s\" has flags %u, depth %u, page %llu", name, t->flags, t->depth, (unsigned long long)t->root);
    if (t->depth > 0)
        KD_TRY(walk_page(w, t->root, t->depth, &first));
    if (w->seen.branch != t->branch || w->seen.leaf != t->leaf || w->seen.overflow != t->overflow || w->seen.entries != t->entries)
        return damaged(w, 0, "\"%s\" holds %llu entries on %llu branch, %llu leaf and %llu overflow pages where its root says %llu, %llu, %llu, %llu", name,
                       (unsigned long long)w->seen.entries, (unsigned long long)w->seen.branch, (unsigned long long)w->seen.leaf, (unsigned long long)w->seen.overflow,
                       (unsigned long long)t->entries, (unsigned long long)t->branch, (unsigned long long)t->leaf, (unsigned long long)t->overflow);
    return KD_OK;
}

/* Both meta pages must be sound, because LMDB looks at both; *current is the one that it will use. */
static kd_status check_metas(walk *w, const uint8_t **current)
{
    uint64_t txn[2];
    for (uint64_t i = 0; i < 2; i++) {
        const uint8_t *m = w->map + i * PAGE;
        if (u64(m) != i || u16(m + 10) != P_META)
            return damaged(w, i, "not an LMDB meta page");
        if (u32(m + 16) != 0xBEEFC0DE || u32(m + 20) != 1)
            return damaged(w, i, "magic %08x, version %u: not an LMDB 0.9 file", u32(m + 16), u32(m + 20));
        if (u64(m + 24) != 0)
            return damaged(w, i, "a fixed map address");
        if (u32(m + 40) != PAGE)
            return damaged(w, i, "pages of %u bytes; this program reads %d", u32(m + 40), PAGE);
        txn[i] = u64(m + 144);
    }
    /* Both 0 in a new file; else they are the last two transactions. */
    if (txn[0] != txn[1] && txn[0] + 1 != txn[1] && txn[1] + 1 != txn[0])
        return damaged(w, 0, "transactions %llu and %llu in the two meta pages", (unsigned long long)txn[0], (unsigned long long)txn[1]);
    *current = w->map + (txn[0] < txn[1] ? PAGE : 0);
    return KD_OK;
}

static kd_status walk_file(void *arg, kd_err *err)
{
    walk *w = arg;
    const uint8_t *meta = NULL;
    tree free_tree, main_tree;
    w->err = err;
    KD_TRY(check_metas(w, &meta));
    w->pages = u64(meta + 136) + 1;
    if (w->pages < 2 || w->pages > w->size / PAGE)
        return damaged(w, w->size / PAGE, "the file ends here, its meta page says that it has %llu pages", (unsigned long long)w->pages);
    if (w->sealed && w->pages * PAGE != w->size)
        return damaged(w, w->pages, "%llu bytes follow the last page", (unsigned long long)(w->size - w->pages * PAGE));
    w->facts->pages = w->pages;
    free_tree = read_tree(meta + 40);
    main_tree = read_tree(meta + 88);
    KD_TRY(walk_tree(w, &main_tree, MAIN_TREE, KD_DB_META, "main"));
    if (main_tree.entries == 0 && !w->sealed)
        w->facts->fresh = 1;
    for (int i = 0; i < KD_DBS && !w->facts->fresh; i++) {
        if (!w->has_sub[i])
            return damaged(w, 0, "database \"%s\" is missing", kd_db_names[i]);
        KD_TRY(walk_tree(w, &w->sub[i], DATA_TREE, (kd_db)i, kd_db_names[i]));
        w->facts->entries[i] = w->seen.entries;
    }
    return walk_tree(w, &free_tree, FREE_TREE, KD_DB_META, "free list");
}

kd_status kd_lmdb_validate_bytes(const uint8_t *bytes, uint64_t size, const char *path, int sealed, kd_lmdb_facts *facts, kd_err *err)
{
    walk w = {.map = bytes, .size = size, .path = path, .sealed = sealed, .facts = facts};
    kd_status status;
    memset(facts, 0, sizeof *facts);
    if (size < 2 * PAGE)
        return kd_fail(err, KD_EDAMAGED, "%s: %llu bytes are too few for a cache", path, (unsigned long long)size);
    w.used = kd_calloc((size_t)(size / PAGE / 8 + 1), 1);
    if (!w.used)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while checking its pages", path);
    status = kd_io_guard(bytes, size, path, walk_file, &w, err);
    kd_free(w.used);
    return status;
}

kd_status kd_lmdb_validate(const char *path, int sealed, kd_lmdb_facts *facts, kd_err *err)
{
    kd_map map;
    kd_status status;
    KD_TRY(kd_io_map(path, &map, err));
    status = kd_lmdb_validate_bytes(map.data, map.size, path, sealed, facts, err);
    kd_io_unmap(&map);
    return status;
}
