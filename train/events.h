/* Events: the curves and pictures of a run as TensorBoard reads them: events.out.tfevents.TIME.HOST.kd-train in the run directory. What lies behind the checkpoint from which a run resumes
 * is dropped, as in metrics.jsonl.
 *
 *     KD_TRY(kd_events_open(&e, "runs/r18", 0, err));
 *     kd_event_value v[2] = {{.tag = "resnet18/loss", .scalar = 0.5}, {.tag = "resnet18/maps", .png = bytes, .png_size = size, .width = 224, .height = 224}};
 *     KD_TRY(kd_events_write(e, step, v, 2, err));
 *     KD_TRY(kd_events_sync(e, &bytes, err));                        // before a checkpoint: `bytes` goes into it
 *     kd_events_close(e);
 *
 * A file is a sequence of records, all little endian: u64 length | u32 masked CRC-32C of the length | message | u32 masked CRC-32C of the message, with
 * masked(c) = ((c >> 15) | (c << 17)) + 0xa282ead8. A message is a protobuf Event {1: double wall_time, 2: int64 step, 3: string file_version, 5: Summary}; the first has file_version
 * "brain.Event:2". Summary {1: repeated Value {1: string tag, 2: float simple_value, 4: Image {1: height, 2: width, 3: colorspace (3 = RGB), 4: encoded_image_string}}}
 * (tensorflow/core/util/event.proto, framework/summary.proto, lib/io/record_writer.cc). */
#ifndef KD_TRAIN_EVENTS_H
#define KD_TRAIN_EVENTS_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

typedef struct kd_event_value {
    const char *tag;      /* "a/b": TensorBoard groups by what stands before the first slash */
    double scalar;        /* when png is NULL; stored as f32 */
    const uint8_t *png;   /* an RGB picture of width x height */
    size_t png_size;
    int width, height;
} kd_event_value;

typedef struct kd_events kd_events;

/* Goes on with the folder's own event file (the last by name that ends in .kd-train), cut to its first keep_bytes bytes; begins one when there is none or keep_bytes is 0 (an old one is then
 * emptied and used again). KD_EFAIL: the folder can't be written to. KD_ENOSPACE. */
kd_status kd_events_open(kd_events **out, const char *folder, uint64_t keep_bytes, kd_err *err);
/* One event: n values of one step, now. Values that aren't finite are left out. */
kd_status kd_events_write(kd_events *e, int64_t step, const kd_event_value *values, size_t n, kd_err *err);
/* Makes what was written durable and gives the length of the file. */
kd_status kd_events_sync(kd_events *e, uint64_t *bytes, kd_err *err);
void kd_events_close(kd_events *e); /* accepts NULL */

/* CRC-32C (Castagnoli) and its masked form, as records carry it. */
uint32_t kd_crc32c(const void *bytes, size_t n);
uint32_t kd_crc32c_masked(const void *bytes, size_t n);

/* The record of an event at `wall_time` into a growing buffer (*buf of *cap bytes, kd_realloc'd); *size is its length. values NULL: the file's first record. KD_EFAIL: memory. */
kd_status kd_event_record(uint8_t **buf, size_t *cap, size_t *size, double wall_time, int64_t step, const kd_event_value *values, size_t n, kd_err *err);

#endif
