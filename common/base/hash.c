#include "common/base/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/evp.h>
#define XXH_INLINE_ALL /* the state's layout and the code that uses it then come from the same version */
#include <xxhash.h>

#include "common/base/mem.h"

static kd_hash128 canonical(XXH128_hash_t h)
{
    XXH128_canonical_t c;
    kd_hash128 out;
    XXH128_canonicalFromHash(&c, h);
    memcpy(out.b, c.digest, sizeof out.b);
    return out;
}

kd_hash128 kd_xxh128(const void *data, size_t size)
{
    return canonical(XXH3_128bits(data, size));
}

kd_hash128 kd_xxh128_2(const void *a, size_t na, const void *b, size_t nb)
{
    XXH3_state_t state; /* on the stack (its type asks for 64-byte alignment), so that hashing a record can't run out of memory */
    XXH3_128bits_reset(&state);
    XXH3_128bits_update(&state, a, na);
    XXH3_128bits_update(&state, b, nb);
    return canonical(XXH3_128bits_digest(&state));
}

uint64_t kd_xxh64(const void *data, size_t size)
{
    return XXH3_64bits(data, size);
}

uint64_t kd_hash128_low64(const kd_hash128 *h)
{
    uint64_t v = 0;
    for (int i = 8; i < 16; i++)
        v = v << 8 | h->b[i];
    return v;
}

struct kd_sha256_ctx {
    EVP_MD_CTX *evp;
};

kd_sha256_ctx *kd_sha256_begin(void)
{
    kd_sha256_ctx *c = kd_calloc(1, sizeof *c);
    if (c && (!(c->evp = EVP_MD_CTX_new()) || EVP_DigestInit_ex(c->evp, EVP_sha256(), NULL) != 1)) {
        EVP_MD_CTX_free(c->evp);
        kd_free(c);
        return NULL;
    }
    return c;
}

void kd_sha256_update(kd_sha256_ctx *c, const void *data, size_t size)
{
    /* After a successful init an update can fail only by misuse. */
    int ok = EVP_DigestUpdate(c->evp, data, size);
    KD_ASSERT(ok == 1);
}

kd_sha256 kd_sha256_final(kd_sha256_ctx *c)
{
    kd_sha256 out;
    int ok = EVP_DigestFinal_ex(c->evp, out.b, NULL);
    KD_ASSERT(ok == 1);
    EVP_MD_CTX_free(c->evp);
    kd_free(c);
    return out;
}

kd_sha256 kd_sha256_of(const void *data, size_t size)
{
    kd_sha256 out;
    int ok = EVP_Digest(data, size, out.b, NULL, EVP_sha256(), NULL);
    KD_ASSERT(ok == 1);
    return out;
}

kd_status kd_sha256_file(const char *path, kd_sha256 *out, kd_err *err)
{
    enum { CHUNK = 1 << 20 };
    kd_status status = KD_OK;
    kd_sha256_ctx *c = NULL;
    uint8_t *chunk = NULL;
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return kd_fail_errno(err, KD_EFAIL, "%s: can't be opened", path);
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        status = kd_fail(err, KD_EFAIL, "%s: not a regular file", path);
        goto end;
    }
    KD_TRY_TO(end, status, kd_alloc_array(&chunk, CHUNK, 1, err));
    if (!(c = kd_sha256_begin())) {
        status = kd_fail(err, KD_EFAIL, "%s: out of memory while hashing", path);
        goto end;
    }
    for (;;) {
        ssize_t n = read(fd, chunk, CHUNK);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            status = kd_fail_errno(err, KD_EFAIL, "%s: can't be read", path);
        if (n <= 0)
            break;
        kd_sha256_update(c, chunk, (size_t)n);
    }
end:
    if (c) {
        kd_sha256 digest = kd_sha256_final(c);
        if (status == KD_OK)
            *out = digest;
    }
    kd_free(chunk);
    close(fd);
    return status;
}

void kd_hex(char *out, const void *bytes, size_t n)
{
    static const char digits[] = "0123456789abcdef";
    const uint8_t *b = bytes;
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digits[b[i] >> 4];
        out[2 * i + 1] = digits[b[i] & 15];
    }
    out[2 * n] = '\0';
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

int kd_unhex(void *out, const char *hex, size_t n)
{
    uint8_t *b = out;
    for (size_t i = 0; i < n; i++) {
        int high = hex_value(hex[2 * i]);
        int low = high < 0 ? -1 : hex_value(hex[2 * i + 1]);
        if (low < 0)
            return -1;
        b[i] = (uint8_t)(high << 4 | low);
    }
    return hex[2 * n] == '\0' ? 0 : -1;
}
