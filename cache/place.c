#include "cache/place.h"

#include "common/base/io.h"

kd_status kd_place_check(const char *out, int force, kd_err *err)
{
    const char *name;
    if (out[0] == 0)
        return kd_fail(err, KD_EUSAGE, "--out is empty; name a file X.kdc or a folder");
    if (force || !kd_io_network_fs(out, &name))
        return KD_OK;
    return kd_fail(err, KD_EUSAGE, "--out %s: on a network file system (%s), where a cache that is being written is neither safe nor quick; write on a local disk and move what is finished, or give "
                   "--force", out, name);
}

kd_status kd_place_check_room(const char *out, uint64_t need, const char *advice, kd_err *err)
{
    uint64_t room;
    char need_text[32], room_text[32];
    KD_TRY(kd_io_free_bytes(out, &room, err));
    if (need <= room / 5 * 4)
        return KD_OK;
    return kd_fail(err, KD_ENOSPACE, "%s: writing and sealing needs about %s and %s are free (at most 80%% is used); put --out on a larger disk%s", out,
                   kd_io_size_text(need, need_text, sizeof need_text), kd_io_size_text(room, room_text, sizeof room_text), advice);
}
