#include "precompute/config.h"

#include "common/image/augment.h"

#define T kd_precompute_config

static const kd_option table[] = {
    KD_OPTION_STRING(T, images, "images", "DIR|TAR|LIST|-", NULL, KD_OPT_REQUIRED,
                     "images: a folder (tar shards in it are read in place), a .tar, a text file with one path per line, or - for such a list on stdin"),
    KD_OPTION_FLAG(T, null, "null", "the list's paths end in NUL instead of newline (find -print0)"),
    KD_OPTION_STRING(T, weights, "weights", "FILE|DIR", NULL, KD_OPT_REQUIRED,
                     "teacher weights as they are on disk: a .pth or .safetensors file, an index of shards, or a folder that holds them (DINOv2, DINOv3, timm and DeiT ViTs; official, Hugging Face or timm names)"),
    KD_OPTION_STRING(T, cache, "cache", "FILE.kdc|DIR", NULL, KD_OPT_REQUIRED,
                     "cache to write: one file, or a folder of shards, to which later runs add more views or images; run the same command again to resume an interrupted one"),
    KD_OPTION_STRING(T, teacher, "teacher", "auto|NAME", "auto", 0,
                     "what the weights must be (dinov2_vits14_reg, dinov3_vitb16, vit_tiny_patch16_224, ...); everything is inferred from the file, a name only checks"),
    KD_OPTION_STRING(T, weights_key, "weights-key", "PREFIX", NULL, 0, "which model of a checkpoint that holds several: what its tensors' names begin with, such as teacher.backbone"),
    KD_OPTION_CHOICE(T, positions, "positions", "auto|official|hf|timm", "auto",
                     "how learned positions are resized to the image: as the official code, transformers or timm does; auto: as the code that names its tensors so"),
    KD_OPTION_STRING(T, normalize, "normalize", "auto|NAME|M,M,M/S,S,S", "auto", 0,
                     "normalisation of the teacher's input: imagenet, half (0.5), dinov3-sat, or mean and standard deviation; auto: the family's, or that of the JSON file beside the weights"),
    KD_OPTION_INT(T, views, "views", "N", "8", 1, 65536, "augmented views per image"),
    KD_OPTION_INT(T, seed, "seed", "N", "0", 0, 9007199254740992.0, "seed of the augmentation plans"),
    KD_OPTION_STRING(T, augment, "augment", "PRESET|FILE.yaml", "lightly", 0,
                     "augmentation: lightly (LightlyTrain's), lightly+mixup (each view mixed with another image's; decodes two pictures a view, and the set of images can't change any more), dino and dino-1 (second and first global crop of DINOv2 as its code runs: blurred with probability 0.9, and never), crop-flip, eval, or a file with torchvision's names of transforms (docs/augment.md)"),
    KD_OPTION_CHOICE(T, exif, "exif", "ignore|apply", "ignore", "orientation of photos: as the pixels are stored (what Pillow and torchvision read), or turned upright by their EXIF"),
    KD_OPTION_INT(T, max_pixels, "max-pixels", "N", "89478485", 1, 4290250000.0, "pictures with more pixels are skipped (sides end at 65500)"),
    KD_OPTION_STRING(T, image_size, "image-size", "S|HxW", "224", 0, "size of the views, S x S or H rows by W columns; multiples of the teacher's patch"),
    KD_OPTION_STRING(T, features, "features", "LIST", "cls,patch", 0, "what to store: any of cls, patch, registers and mean (of the patches), separated by commas"),
    KD_OPTION_STRING(T, layers, "layers", "N,N,...|all:N,...", "1", 0, "layers to store, counted from the end (1 is the last block's output), or after all: block numbers from 0"),
    KD_OPTION_CHOICE(T, layer_norm, "layer-norm", "on|off", "on", "whether each layer goes through the teacher's final norm"),
    KD_OPTION_CHOICE(T, layer_concat, "layer-concat", "on|off", "off", "join the layers' features into one of their widths' sum, the earlier layer first"),
    KD_OPTION_STRING(T, patch_target, "patch-target", "auto|full|pool:K|adjoint:K,...", "auto", 0,
                     "how patches are stored, one form or up to four: the full grid, K x K means, or exactly what a K x K student's error and gradient need (docs/storage.md); auto: full, or what --for and --budget ask for"),
    KD_OPTION_CHOICE(T, store, "store", "auto|f16|bf16|i8", "auto", "type of stored values; i8 is rotated, with a scale for each token: half of f16 (docs/storage.md); auto: i8, which on real photos is as good as f16"),
    KD_OPTION_STRING(T, students, "for", "STUDENT,...", NULL, 0, "students that will be trained, such as resnet18,vit_small_patch16_224: patches are stored in the form that serves these at a fraction of the bytes"),
    KD_OPTION_STRING(T, student_size, "student-size", "S|HxW", "0", 0, "size at which the students of --for will see the views; 0 = the full view"),
    KD_OPTION_INT(T, zstd_level, "zstd-level", "L", "1", 1, 19, "zstd level; levels above 1 save little on features"),
    KD_OPTION_INT(T, batch_size, "batch-size", "N", "0", 0, 4096, "views per teacher batch; 0: 16, on a CUDA device as many of 8 to 256 as three fifths of its memory hold"),
    KD_OPTION_INT(T, threads, "threads", "N", "0", 0, 1024, "compute and loader threads; 0 = every processor"),
    KD_OPTION_STRING(T, device, "device", "auto|ref|cpu|cuda[:N|:all]", "auto", 0, "where the teacher runs; cuda:all: on every CUDA device, each in a process with its part of the images (folder)"),
    KD_OPTION_CHOICE(T, precision, "precision", "f32|bf16", "f32", "arithmetic of the teacher's matrix products"),
    KD_OPTION_SIZE(T, budget, "budget", NULL, "largest sealed cache that is acceptable, of all parts together: a smaller patch target (of --for's students, then pooled), then fewer views, then no patches are chosen to fit (docs/storage.md; kd-cache estimate shows the choices)"),
    KD_OPTION_STRING(T, max_skipped, "max-skipped", "N|P%", "0", 0, "bad inputs that are acceptable; beyond that the finished run ends with exit code 3"),
    KD_OPTION_SIZE(T, shard_size, "shard-size", "32GB", "folder: a shard ends where its records reach this size, so that sealing needs little extra space"),
    KD_OPTION_STRING(T, shard, "shard", "I/N", NULL, 0,
                     "folder: do the I-th of N parts of the images, 1 to N, while other jobs do theirs; without it Slurm's array variables count (docs/slurm.md), and 1/1 is everything"),
    KD_OPTION_STRING(T, stage, "stage", "DIR", NULL, 0, "write in DIR on a local disk and move each finished file to --cache: for network file systems"),
    KD_OPTION_FLAG(T, force, "force", "write on a network file system without --stage"),
    KD_OPTION_CHOICE(T, paths, "paths", "relative|hash", "relative", "how the cache names files: by relative path, or by its hash where file names are private (the files are found by either)"),
    KD_OPTION_STRING(T, fill, "fill", "LIST", NULL, 0, "folder: only the views listed in the missing.txt of kd-cache repair, as a new shard"),
    KD_OPTION_STRING(T, dataset_name, "dataset-name", "TEXT", NULL, 0, "name of the set of images, kept in the manifest beside its number of files and bytes"),
    KD_OPTION_STRING(T, note, "note", "TEXT", NULL, 0, "free text kept in the manifest"),
    KD_OPTION_STRING(T, license, "license", "TEXT", NULL, 0, "licence of images and features, kept in the manifest"),
    KD_OPTION_STRING(T, contact, "contact", "TEXT", NULL, 0, "whom to ask about this cache, kept in the manifest"),
    KD_OPTION_FLAG(T, dry_run, "dry-run", "print the plan (counts, bytes, memory, time) and touch nothing"),
    KD_OPTION_ALONE(T, inspect, "inspect", "say what the weight file FILE (or --weights) is, and whether it can be a teacher; nothing else is needed"),
    KD_OPTION_STRING(T, file, "FILE", "", NULL, KD_OPT_POSITIONAL, "weight file or folder for --inspect"),
    KD_OPTION_END,
};

const kd_program kd_precompute_program = {
    .name = "kd-precompute",
    .summary = "Runs a frozen ViT teacher once over augmented views of unlabeled images and stores its features in a cache.",
    .examples = "  $ kd-precompute --inspect dinov2_vits14_reg4_pretrain.pth\n"
                "  $ kd-precompute --images photos --weights dinov2_vits14_reg4_pretrain.pth --cache photos.kdc --dry-run\n"
                "  $ kd-precompute --images photos --weights dinov2_vits14_reg4_pretrain.pth --cache photos.kdc --views 8 --precision bf16\n"
                "  $ kd-precompute --images photos --weights dinov3-vitb16/ --cache photos.kdc --image-size 256x192 --features cls,patch --layers 1,4\n"
                "  $ kd-precompute --images photos --weights vitb14.safetensors --cache photos.kdc --layers 1,2 --layer-concat on\n"
                "  $ kd-precompute --images photos --weights vits14.pth --cache cache/ --shard 3/8                # job 3 of 8 into one folder\n"
                "  $ kd-precompute --images shards/ --weights vits14.pth --cache photos.kdc                      # shards/photos-000000.tar ...\n"
                "  $ find photos -name '*.jpg' -print0 | kd-precompute --null --images - --weights vits14.pth --cache photos.kdc --budget 200GB\n",
    .epilog = "Files: FILE.kdc, its manifest FILE.kdc.json, FILE.kdc.partial while it is being made; FILE.kdc.skipped.tsv lists the inputs that could not be used, each with the reason.\n"
              "In a folder DIR/shard-00000.kdc and so on, DIR/part-00003-of-00008-00000.kdc of part 3/8, and DIR/shard.skipped.tsv, DIR/part-00003-of-00008.skipped.tsv; lists of skipped\n"
              "inputs have real file names, also with --paths hash: keep them.\n"
              "Exit codes: 0 done (--inspect: usable as a teacher); 1 failure, damaged weights; 2 usage, weights that are no teacher; 3 done, but more inputs were skipped\n"
              "than --max-skipped; 11 another writer holds the cache; 12 the cache on disk is damaged; 13 it has another recipe (of mixed views: other images); 14 not enough space;\n"
              "15 device not available; 16 non-finite features; 130, 143 interrupted (what was computed is stored).\n",
    .options = table,
};
