/* Policies from YAML: the presets' files give the presets, defaults are torchvision's, and everything that is wrong is named with file, key and value. */
#include "tests/unit/unit.h"

#include "common/base/mem.h"
#include "common/image/augment.h"

static kd_err err;
static char *folder, path[4200];

static int start(void **state) {
    (void)state;
    folder = unit_folder();
    snprintf(path, sizeof path, "%s/p.yaml", folder);
    return 0;
}

static int end(void **state) {
    (void)state;
    free(folder);
    return 0;
}

static kd_status load_text(kd_policy *p, const char *text, int h, int w) {
    unit_write(path, text, strlen(text));
    return kd_policy_load(p, path, h, w, &err);
}

static void assert_same_policy(const kd_policy *a, const kd_policy *b) {
    json_t *ja = kd_policy_json(a), *jb = kd_policy_json(b);
    char *ta = kd_json_canonical(ja), *tb = kd_json_canonical(jb);
    assert_string_equal(ta, tb);
    kd_free(ta);
    kd_free(tb);
    json_decref(ja);
    json_decref(jb);
}

static void the_file_of_each_preset_is_the_preset(void **state) {
    (void)state;
    static const char *const presets[] = {"lightly", "lightly+mixup", "dino", "dino-1", "crop-flip", "eval"};
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
        char file[100];
        kd_policy a, b;
        snprintf(file, sizeof file, "docs/augment/%s.yaml", presets[i]);
        assert_ok(kd_policy_load(&a, file, 224, 224, &err));
        assert_ok(kd_policy_load(&b, presets[i], 224, 224, &err));
        assert_same_policy(&a, &b);
        /* and draws the same views */
        for (uint32_t view = 0; view < 20; view++) {
            kd_hash128 id = kd_xxh128(presets[i], 3);
            kd_plan pa = kd_plan_draw(&a, 1, &id, view, 500, 400), pb = kd_plan_draw(&b, 1, &id, view, 500, 400);
            uint8_t ra[KD_PLAN_BYTES], rb[KD_PLAN_BYTES];
            kd_plan_encode(&pa, ra);
            kd_plan_encode(&pb, rb);
            assert_memory_equal(ra, rb, KD_PLAN_BYTES);
        }
    }
}

static void what_is_left_out_has_torchvisions_default(void **state) {
    (void)state;
    kd_policy p;
    assert_ok(load_text(&p, "name: d\ntransforms: [RandomResizedCrop, RandomHorizontalFlip, RandomVerticalFlip: , {ColorJitter: {hue: 0.25}}, RandomGrayscale: ~, "
                            "{GaussianBlur: {kernel_size: [5, 5]}}, {RandomSolarize: {threshold: 200.0}}, Mixup]\n", 112, 168));
    const kd_policy want = {.name = "d", .image_h = 112, .image_w = 168, .scale_min = 0.08, .scale_max = 1.0, .ratio_min = 3.0 / 4.0, .ratio_max = 4.0 / 3.0,
                            .filter = KD_FILTER_BILINEAR, .hflip_p = 0.5, .vflip_p = 0.5, .jitter_p = 1.0, .hue = 0.25, .gray_p = 0.1, .blur_p = 1.0, .blur_kernel = 5,
                            .sigma_min = 0.1, .sigma_max = 2.0, .solarize_p = 0.5, .solarize_threshold = 200, .mix_p = 1.0};
    assert_same_policy(&p, &want);
    assert_ok(load_text(&p, "name: s\ntransforms:\n- RandomResizedCrop: {size: [112, 168], interpolation: box}\n- GaussianBlur: {kernel_size: 3, sigma: 1}\n", 112, 168));
    assert_true(p.sigma_min == 1.0 && p.sigma_max == 1.0 && p.filter == KD_FILTER_BOX);
    assert_ok(load_text(&p, "name: r\ntransforms:\n- Resize: {size: 300}\n- CenterCrop\n- RandomVerticalFlip: {p: 1}\n", 112, 168));
    assert_true(p.cover_h == 300 && p.cover_w == 300 && p.filter == KD_FILTER_BILINEAR && p.vflip_p == 1.0 && p.scale_min == 1.0);
}

/* Two files that make the same views have the same description. */
static void what_cannot_happen_has_no_parameters(void **state) {
    (void)state;
    kd_policy a, b;
    assert_ok(load_text(&a, "name: x\ntransforms: [RandomResizedCrop, RandomHorizontalFlip: {p: -0.0}, ColorJitter: {brightness: 0.4, p: 0}, GaussianBlur: {kernel_size: 9, p: 0.0}, "
                            "RandomSolarize: {threshold: 5, p: 0}, Mixup: {p: 0}]\n", 64, 64));
    assert_ok(load_text(&b, "transforms: [{RandomResizedCrop: {scale: [0.08, 1], size: 64}}, ColorJitter]\nname: x\n", 64, 64));
    assert_same_policy(&a, &b);
    /* a blur that never happens needs no room */
    assert_ok(load_text(&a, "name: x\ntransforms: [RandomResizedCrop, GaussianBlur: {kernel_size: 9, p: 0.0}]\n", 4, 4));
}

/* A whole document, or the list of transforms behind "RandomResizedCrop, ". */
static void check_refused(const char *text, const char *const *says) {
    char document[2000];
    kd_policy p;
    int whole = strstr(text, "transforms") || strstr(text, "name") || text[0] == '\0';
    snprintf(document, sizeof document, whole ? "%s" : "name: x\ntransforms: [RandomResizedCrop, %s]\n", text);
    if (load_text(&p, document, 64, 96) != KD_EUSAGE)
        fail_msg("%s was taken", document);
    assert_contains(err.msg, "p.yaml");
    for (int i = 0; i < 3 && says[i]; i++)
        assert_contains(err.msg, says[i]);
}

static void every_mistake_is_named_with_key_and_value(void **state) {
    (void)state;
    static const struct { const char *text, *says[3]; } bad[] = {
        {"", {"name is absent"}},
        {"name: x\n", {"transforms is absent", "a list"}},
        {"name: x\ntransforms: 5\n", {"transforms is 5", "a list"}},
        {"name: x\ntransforms: []\n", {"transforms is []"}},
        {"transforms: [RandomResizedCrop]\n", {"name is absent"}},
        {"name: 5\ntransforms: [RandomResizedCrop]\n", {"name is 5"}},
        {"name: a b\ntransforms: [RandomResizedCrop]\n", {"name is \"a b\"", "letters"}},
        {"name: ''\ntransforms: [RandomResizedCrop]\n", {"name is \"\""}},
        {"name: abcdefghijabcdefghijabcdefghij12\ntransforms: [RandomResizedCrop]\n", {"name is", "up to 31"}},
        {"name: x\ntransform: [RandomResizedCrop]\n", {"\"transform\"", "did you mean \"transforms\"", "name and transforms"}},
        {"name: x\nversion: 2\ntransforms: [RandomResizedCrop]\n", {"\"version\"", "name and transforms"}},
        {"name: x\ntransforms: [RandomResizedCrop\n", {"p.yaml:3"}},
        {"name: x\nname: y\ntransforms: [RandomResizedCrop]\n", {"a second time"}},
        /* which transforms, and in which order */
        {"GausianBlur: {kernel_size: 9}", {"transforms[1]", "\"GausianBlur\"", "did you mean \"GaussianBlur\""}},
        {"ToTensor", {"transforms[1]", "unknown transform \"ToTensor\"", "GaussianBlur"}},
        {"5", {"transforms[1] is 5"}},
        {"[RandomHorizontalFlip]", {"transforms[1] is [\"RandomHorizontalFlip\"]"}},
        {"{}", {"transforms[1] is {}"}},
        {"~", {"transforms[1] is null"}},
        {"{RandomHorizontalFlip: , p: 0.5}", {"transforms[1]", "indented"}},
        {"RandomHorizontalFlip: 0.5", {"RandomHorizontalFlip is 0.5", "by name"}},
        {"RandomHorizontalFlip, RandomHorizontalFlip", {"transforms[2]", "RandomHorizontalFlip can't follow RandomHorizontalFlip"}},
        {"ColorJitter, RandomHorizontalFlip", {"RandomHorizontalFlip can't follow ColorJitter", "the order is"}},
        {"RandomSolarize: {threshold: 3}, GaussianBlur: {kernel_size: 3}", {"GaussianBlur can't follow RandomSolarize"}},
        {"Resize: {size: 256}", {"Resize can't follow RandomResizedCrop"}},
        {"RandomResizedCrop", {"RandomResizedCrop can't follow RandomResizedCrop"}},
        {"CenterCrop", {"transforms[1] is CenterCrop", "Resize"}},
        {"name: x\ntransforms: [RandomHorizontalFlip]\n", {"transforms[0] is RandomHorizontalFlip", "get their size"}},
        {"name: x\ntransforms: [CenterCrop]\n", {"transforms[0] is CenterCrop", "get their size"}},
        {"name: x\ntransforms: [{Resize: {size: 256}}]\n", {"ends with Resize", "CenterCrop must follow"}},
        {"name: x\ntransforms: [{Resize: {size: 256}}, RandomHorizontalFlip]\n", {"transforms[1] is RandomHorizontalFlip", "CenterCrop"}},
        {"name: x\ntransforms: [{Resize: {size: 256}}, CenterCrop, CenterCrop]\n", {"CenterCrop can't follow CenterCrop"}},
        {"name: x\ntransforms: [{Resize: {size: 256}}, RandomResizedCrop]\n", {"RandomResizedCrop can't follow Resize"}},
        /* parameters */
        {"RandomHorizontalFlip: {prob: 0.5}", {"transforms[1]: RandomHorizontalFlip", "no parameter \"prob\"", "there is p"}},
        {"ColorJitter: {britness: 0.5}", {"\"britness\"", "did you mean \"brightness\"", "brightness, contrast, saturation, hue and p"}},
        {"RandomHorizontalFlip: {p: 1.1}", {"RandomHorizontalFlip.p is 1.1", "from 0 to 1"}},
        {"RandomHorizontalFlip: {p: -0.1}", {"RandomHorizontalFlip.p is -0.1"}},
        {"RandomVerticalFlip: {p: often}", {"RandomVerticalFlip.p is \"often\""}},
        {"RandomVerticalFlip: {p: .nan}", {"RandomVerticalFlip.p is \".nan\""}},
        {"RandomVerticalFlip: {p: true}", {"RandomVerticalFlip.p is true"}},
        {"RandomVerticalFlip: {p: '1'}", {"RandomVerticalFlip.p is \"1\""}},
        {"RandomVerticalFlip: {p: ~}", {"RandomVerticalFlip.p is null"}},
        {"RandomVerticalFlip: {p: [0.5]}", {"RandomVerticalFlip.p is [0.5]"}},
        {"RandomGrayscale: {p: 2}", {"RandomGrayscale.p is 2"}},
        {"Mixup: {p: 2}", {"Mixup.p is 2"}},
        {"Mixup: {alpha: 1}", {"Mixup", "\"alpha\""}},
        {"ColorJitter: {brightness: [0.6, 1.4]}", {"ColorJitter.brightness is [0.6", "one number"}},
        {"ColorJitter: {contrast: 100}", {"ColorJitter.contrast is 100"}},
        {"ColorJitter: {saturation: -1}", {"ColorJitter.saturation is -1"}},
        {"ColorJitter: {hue: 0.51}", {"ColorJitter.hue is 0.51", "0.5"}},
        {"ColorJitter: {p: 1e400}", {"ColorJitter.p is"}},
        {"GaussianBlur", {"GaussianBlur has no kernel_size", "odd"}},
        {"GaussianBlur: {kernel_size: 4}", {"GaussianBlur.kernel_size is 4", "odd"}},
        {"GaussianBlur: {kernel_size: 1}", {"GaussianBlur.kernel_size is 1"}},
        {"GaussianBlur: {kernel_size: 25}", {"GaussianBlur.kernel_size is 25", "23"}},
        {"GaussianBlur: {kernel_size: [3, 5]}", {"GaussianBlur.kernel_size is [3,5]", "equal"}},
        {"GaussianBlur: {kernel_size: [3]}", {"GaussianBlur.kernel_size is [3]"}},
        {"GaussianBlur: {kernel_size: 3.5}", {"GaussianBlur.kernel_size is 3.5"}},
        {"GaussianBlur: {kernel_size: 9, sigma: 0}", {"GaussianBlur.sigma is 0", "0.001"}},
        {"GaussianBlur: {kernel_size: 9, sigma: [2, 0.1]}", {"GaussianBlur.sigma is [2,0.1"}},
        {"GaussianBlur: {kernel_size: 9, sigma: [0.1]}", {"GaussianBlur.sigma is [0.1"}},
        {"GaussianBlur: {kernel_size: 9, sigma: [0.1, x]}", {"GaussianBlur.sigma is [0.1"}},
        {"RandomSolarize", {"RandomSolarize has no threshold"}},
        {"RandomSolarize: {threshold: 256}", {"RandomSolarize.threshold is 256"}},
        {"RandomSolarize: {threshold: 127.5}", {"RandomSolarize.threshold is 127.5"}},
        {"RandomSolarize: {threshold: -1}", {"RandomSolarize.threshold is -1"}},
        {"RandomSolarize: {threshold: 99999999999999999999}", {"RandomSolarize.threshold is"}},
        {"name: x\ntransforms: [RandomResizedCrop: {size: 64}]\n", {"RandomResizedCrop.size is 64", "64x96", "--image-size"}},
        {"name: x\ntransforms: [RandomResizedCrop: {size: [64, 96, 3]}]\n", {"RandomResizedCrop.size is [64,96,3]"}},
        {"name: x\ntransforms: [RandomResizedCrop: {size: 224px}]\n", {"RandomResizedCrop.size is \"224px\""}},
        {"name: x\ntransforms: [RandomResizedCrop: {scale: 0.5}]\n", {"RandomResizedCrop.scale is 0.5"}},
        {"name: x\ntransforms: [RandomResizedCrop: {scale: [0, 1]}]\n", {"RandomResizedCrop.scale is [0,1]", "above 0"}},
        {"name: x\ntransforms: [RandomResizedCrop: {scale: [0.5, 1.5]}]\n", {"RandomResizedCrop.scale is"}},
        {"name: x\ntransforms: [RandomResizedCrop: {scale: [0.9, 0.5]}]\n", {"RandomResizedCrop.scale is"}},
        {"name: x\ntransforms: [RandomResizedCrop: {ratio: [0.001, 1]}]\n", {"RandomResizedCrop.ratio is"}},
        {"name: x\ntransforms: [RandomResizedCrop: {ratio: [2, 1]}]\n", {"RandomResizedCrop.ratio is [2,1]"}},
        {"name: x\ntransforms: [RandomResizedCrop: {interpolation: lanczos}]\n", {"RandomResizedCrop.interpolation is \"lanczos\"", "bicubic"}},
        {"name: x\ntransforms: [RandomResizedCrop: {interpolation: 3}]\n", {"RandomResizedCrop.interpolation is 3"}},
        {"name: x\ntransforms: [Resize, CenterCrop]\n", {"Resize has no size"}},
        {"name: x\ntransforms: [Resize: {size: 95}, CenterCrop]\n", {"Resize.size is 95", "from 96"}},
        {"name: x\ntransforms: [Resize: {size: [256, 256]}, CenterCrop]\n", {"Resize.size is [256,256]", "change the picture's shape"}},
        {"name: x\ntransforms: [Resize: {size: 10000}, CenterCrop]\n", {"Resize.size is 10000", "8192"}},
        {"name: x\ntransforms: [Resize: {size: 256}, CenterCrop: {size: 224}]\n", {"CenterCrop.size is 224", "64x96"}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        check_refused(bad[i].text, bad[i].says);
}

static void a_blur_needs_room(void **state) {
    (void)state;
    kd_policy p;
    const char *text = "name: wide\ntransforms: [RandomResizedCrop, GaussianBlur: {kernel_size: 23}]\n";
    assert_ok(load_text(&p, text, 12, 12));
    assert_int_equal(load_text(&p, text, 224, 11), KD_EUSAGE);
    assert_contains(err.msg, "at least 12");
}

static void what_is_no_file_is_said(void **state) {
    (void)state;
    kd_policy p;
    assert_int_equal(kd_policy_load(&p, "/nowhere/p.yaml", 224, 224, &err), KD_EUSAGE);
    assert_contains(err.msg, "/nowhere/p.yaml");
    assert_int_equal(kd_policy_load(&p, "policy.yamll", 224, 224, &err), KD_EUSAGE);
    assert_contains(err.msg, "end in .yaml");
    char long_name[5000];
    memset(long_name, 'a', sizeof long_name);
    memcpy(long_name, "name: x\ntransforms: [", 21);
    strcpy(long_name + sizeof long_name - 4, "]\n");
    assert_int_equal(load_text(&p, long_name, 224, 224), KD_EUSAGE);
    assert_contains(err.msg, "unknown transform");
    assert_true(strlen(err.msg) < 600);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_file_of_each_preset_is_the_preset),
        cmocka_unit_test(what_is_left_out_has_torchvisions_default),
        cmocka_unit_test(what_cannot_happen_has_no_parameters),
        cmocka_unit_test(every_mistake_is_named_with_key_and_value),
        cmocka_unit_test(a_blur_needs_room),
        cmocka_unit_test(what_is_no_file_is_said),
    };
    return cmocka_run_group_tests_name("policy_file", tests, start, end);
}
