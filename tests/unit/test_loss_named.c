/* Named losses and --pair: what each expands to, how options change it, and the sentence for every mistake. */
#include "tests/unit/unit.h"

#include "train/loss_named.h"

static kd_err err;
static kd_arena *arena;
static kd_train_config config;
static kd_recipe recipe;
static kd_loss_offer offer;
static kd_loss loss;

/* A cache of 1200 images with both features of the last layer. */
static int fresh(void **state) {
    (void)state;
    arena = kd_arena_create();
    recipe = (kd_recipe){.width = 8, .grid_h = 2, .grid_w = 3, .layers = 1, .layer = {1}, .features = 1u << KD_FEATURE_CLS | 1u << KD_FEATURE_PATCH, .targets = 1};
    offer = (kd_loss_offer){.recipe = &recipe, .cache = "photos.kdc", .images = 1200};
    return 0;
}
static int drop(void **state) {
    (void)state;
    kd_arena_destroy(arena);
    return 0;
}

/* Options, words between single spaces; the teacher's layer resolved as the set-up does. */
static void options(const char *words) {
    char *argv[40] = {"kd-train", "--cache", "c", "--images", "i", "--out", "o", "--student", "resnet18"}, *rest = kd_arena_strdup(arena, words);
    int n = 9;
    for (char *word; (word = strsep(&rest, " ")) != NULL;)
        if (word[0] != '\0')
            argv[n++] = word;
    config = (kd_train_config){0};
    assert_ok(kd_options_parse(&kd_train_program, &config, n, argv, NULL, arena, &err));
    if (config.teacher_layer == 0)
        config.teacher_layer = recipe.layer[0];
}

static kd_status build(const char *words) {
    options(words);
    return kd_loss_from_config(&loss, &config, &offer, &err);
}

/* "name tap>feature:layer scaling head" of each pair, then "name=kind(pair)*weight" of each term with what its kind reads. */
static const char *text_of(const kd_loss *l) {
    static const char *const scaling[] = {"standard", "raw", "unit"}, *const head[] = {"norm-linear", "linear", "mlp", "mlp-gelu"};
    static char out[4000];
    size_t n = 0;
    out[0] = '\0';
    for (int i = 0; i < l->pairs; i++) {
        const kd_pair *p = &l->pair[i];
        n += (size_t)snprintf(out + n, sizeof out - n, "%s %s>%s:%u %s %s", p->name, p->tap, kd_feature_name(p->feature), p->layer, scaling[p->scaling], head[p->head]);
        if (p->head == KD_HEAD_MLP || p->head == KD_HEAD_MLP_GELU)
            n += (size_t)snprintf(out + n, sizeof out - n, "/%d", p->hidden);
        if (p->classes > 0)
            n += (size_t)snprintf(out + n, sizeof out - n, " %d classes", p->classes);
        n += (size_t)snprintf(out + n, sizeof out - n, "; ");
    }
    for (int i = 0; i < l->terms; i++) {
        const kd_term *t = &l->term[i];
        n += (size_t)snprintf(out + n, sizeof out - n, "%s%s=%s(%s)*%.4g", i > 0 ? ", " : "", t->name, kd_term_facts_of(t->kind)->name, l->pair[t->pair].name, t->weight);
        if (t->kind == KD_TERM_KL_QUEUE || t->kind == KD_TERM_KL_INTRA || t->kind == KD_TERM_KL_LOGITS)
            n += (size_t)snprintf(out + n, sizeof out - n, " T%.4g", t->temperature);
        if (t->kind == KD_TERM_SMOOTH_L1)
            n += (size_t)snprintf(out + n, sizeof out - n, " b%.4g", t->beta);
        if (t->kind == KD_TERM_KL_QUEUE)
            n += (size_t)snprintf(out + n, sizeof out - n, " Q%d", t->queue_rows);
    }
    assert_true(n < sizeof out);
    return out;
}

static void expands(const char *words, const char *want) {
    assert_ok(build(words));
    if (strcmp(text_of(&loss), want) != 0)
        fail_msg("%s is\n    %s\nand should be\n    %s", words, text_of(&loss), want);
}

static void refused(const char *words, const char *says) {
    if (build(words) != KD_EUSAGE)
        fail_msg("%s isn't refused: %s", words, text_of(&loss));
    assert_contains(err.msg, says);
}

typedef struct expansion {
    const char *words, *want;
} expansion;

/* With the defaults of facts: every choice of --loss. kl-logits needs a head, none needs a weight. */
static const expansion named[] = {
    {"--loss std-mse", "cls cls>cls:1 standard norm-linear; patch map>patch:1 standard norm-linear; cls=mse(cls)*1, patch=mse(patch)*1"},
    {"--loss mse", "patch map>patch:1 raw linear; patch=mse(patch)*1"},
    {"--loss kl-queue", "global pooled>cls:1 raw linear; global=kl-queue(global)*1 T0.07 Q512"},
    {"--loss kl-queue+intra", "global pooled>cls:1 raw linear; local map>patch:1 raw linear; global=kl-queue(global)*1 T0.07 Q512, local=kl-intra(local)*1 T0.07"},
    {"--loss mse-normalized", "cls cls>cls:1 unit norm-linear; patch map>patch:1 unit norm-linear; cls=mse(cls)*1, patch=mse(patch)*0.5"},
    {"--loss cosine", "cls cls>cls:1 raw norm-linear; patch map>patch:1 raw norm-linear; cls=cosine(cls)*1, patch=cosine(patch)*1"},
    {"--loss cos-sl1",
     "cls cls>cls:1 standard norm-linear; patch map>patch:1 standard norm-linear; cls_cosine=cosine(cls)*0.9, cls_smooth_l1=smooth-l1(cls)*0.1 b1, patch_cosine=cosine(patch)*0.9, "
     "patch_smooth_l1=smooth-l1(patch)*0.1 b1"},
    {"--loss radio", "cls cls>cls:1 raw norm-linear; patch map>patch:1 raw norm-linear; cls=cosine(cls)*1, patch_cosine=cosine(patch)*0.9, patch_smooth_l1=smooth-l1(patch)*0.1 b1"},
    {"--loss unic",
     "cls cls>cls:1 standard norm-linear; patch map>patch:1 standard norm-linear; cls_cosine=cosine(cls)*0.25, cls_smooth_l1=smooth-l1(cls)*0.25 b1, patch_cosine=cosine(patch)*0.25, "
     "patch_smooth_l1=smooth-l1(patch)*0.25 b1"},
    {"--loss smooth-l1", "cls cls>cls:1 standard norm-linear; patch map>patch:1 standard norm-linear; cls=smooth-l1(cls)*1 b1, patch=smooth-l1(patch)*1 b1"},
    {"--loss gram", "patch map>patch:1 raw linear; patch=gram(patch)*1"},
    {"--loss kl-logits", "logits pooled>cls:1 raw linear 5 classes; logits=kl-logits(logits)*1 T1"},
    {"--loss none --cls-weight 2", "cls cls>cls:1 standard norm-linear; cls=mse(cls)*2"},
};

static void every_name_expands_to_its_pairs_and_terms(void **state) {
    (void)state;
    offer.classes = 5;
    for (size_t i = 0; i < sizeof named / sizeof named[0]; i++)
        expands(named[i].words, named[i].want);
}

static void no_name_of_the_option_is_left_out_here(void **state) {
    (void)state;
    const kd_option *o = kd_train_program.options;
    size_t n = 0;
    while (strcmp(o->name, "loss") != 0)
        o++;
    for (char *one, *rest = kd_arena_strdup(arena, o->metavar); (one = strsep(&rest, "|")) != NULL; n++) {
        char words[100];
        int found = 0;
        snprintf(words, sizeof words, "--loss %s", one);
        for (size_t i = 0; i < sizeof named / sizeof named[0]; i++)
            found |= strncmp(named[i].words, words, strlen(words)) == 0 && (named[i].words[strlen(words)] == '\0' || named[i].words[strlen(words)] == ' ');
        if (!found)
            fail_msg("%s has no expansion in this test", words);
    }
    assert_int_equal(n, sizeof named / sizeof named[0]);
}

static void explicit_options_win(void **state) {
    (void)state;
    offer.classes = 7;
    static const expansion cases[] = {
        {"--cls-weight 0.25 --patch-weight 3", "cls cls>cls:1 standard norm-linear; patch map>patch:1 standard norm-linear; cls=mse(cls)*0.25, patch=mse(patch)*3"},
        {"--cls-weight 0", "patch map>patch:1 standard norm-linear; patch=mse(patch)*1"},
        {"--patch-weight 0", "cls cls>cls:1 standard norm-linear; cls=mse(cls)*1"},
        {"--loss mse --cls-weight 0.5", "cls pooled>cls:1 raw linear; patch map>patch:1 raw linear; cls=mse(cls)*0.5, patch=mse(patch)*1"},
        {"--loss kl-queue --patch-weight 2", "global pooled>cls:1 raw linear; local map>patch:1 raw linear; global=kl-queue(global)*1 T0.07 Q512, local=kl-intra(local)*2 T0.07"},
        {"--loss kl-queue --temperature 0.2 --queue-size 33", "global pooled>cls:1 raw linear; global=kl-queue(global)*1 T0.2 Q33"},
        {"--loss kl-logits --temperature 4", "logits pooled>cls:1 raw linear 7 classes; logits=kl-logits(logits)*1 T4"},
        {"--loss cos-sl1 --cosine-share 0.6 --beta 2 --patch-weight 0", "cls cls>cls:1 standard norm-linear; cls_cosine=cosine(cls)*0.6, cls_smooth_l1=smooth-l1(cls)*0.4 b2"},
        {"--loss cos-sl1 --cosine-share 1 --patch-weight 0", "cls cls>cls:1 standard norm-linear; cls_cosine=cosine(cls)*1"},
        {"--loss unic --cosine-share 0.6 --patch-weight 0", "cls cls>cls:1 standard norm-linear; cls_cosine=cosine(cls)*0.25, cls_smooth_l1=smooth-l1(cls)*0.25 b1"},
        {"--head mlp --head-hidden 48 --patch-weight 0", "cls cls>cls:1 standard mlp/48; cls=mse(cls)*1"},
        {"--loss mse --head mlp-gelu", "patch map>patch:1 raw mlp-gelu/2048; patch=mse(patch)*1"},
        {"--head linear --patch-weight 0", "cls cls>cls:1 standard linear; cls=mse(cls)*1"},
        {"--loss none --patch-weight 1", "patch map>patch:1 standard norm-linear; patch=mse(patch)*1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expands(cases[i].words, cases[i].want);
}

static void mse_learns_the_last_two_layers_that_are_stored(void **state) {
    (void)state;
    recipe.layers = 3;
    recipe.layer[1] = 2;
    recipe.layer[2] = 5;
    expands("--loss mse", "patch_1 map>patch:1 raw linear; patch_2 map>patch:2 raw linear; patch_1=mse(patch_1)*0.5, patch_2=mse(patch_2)*0.5");
    expands("--loss mse --cls-weight 1 --patch-weight 3",
            "cls pooled>cls:1 raw linear; patch_1 map>patch:1 raw linear; patch_2 map>patch:2 raw linear; cls=mse(cls)*1, patch_1=mse(patch_1)*1.5, patch_2=mse(patch_2)*1.5");
    expands("--loss mse --teacher-layer 5", "patch map>patch:5 raw linear; patch=mse(patch)*1");
    expands("--loss cosine --cls-weight 0 --teacher-layer 2", "patch map>patch:2 raw norm-linear; patch=cosine(patch)*1");
    recipe.layers = 1; /* joined: one layer that holds both */
    recipe.concat = 1;
    expands("--loss mse", "patch map>patch:1 raw linear; patch=mse(patch)*1");
}

static void queues_follow_lightlytrains_table(void **state) {
    (void)state;
    static const struct {
        size_t images;
        int rows;
    } table[] = {{1, 16},      {49, 16},     {50, 32},     {99, 32},      {100, 64},     {249, 64},    {250, 128},   {499, 128},  {500, 256},   {999, 256},
                 {1000, 512},  {1999, 512},  {2000, 1024}, {3999, 1024}, {4000, 2048},  {9999, 2048}, {10000, 4096}, {19999, 4096}, {20000, 8192}, {5000000, 8192}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        assert_int_equal(kd_loss_queue_rows(table[i].images), table[i].rows);
        offer.images = table[i].images;
        assert_ok(build("--loss kl-queue"));
        assert_int_equal(loss.term[0].queue_rows, table[i].rows);
    }
    offer.images = 1200;
    assert_ok(build("--loss kl-queue --queue-size 1199"));
    assert_int_equal(loss.term[0].queue_rows, 1199);
    refused("--loss kl-queue --queue-size 1200", "--queue-size 1200: photos.kdc has 1200 images, and a queue must be shorter than the data set");
    assert_contains(err.msg, "or auto (512)");
    refused("--loss kl-queue --queue-size 0", "--queue-size 0: expected a whole number from 1 on, or auto");
    refused("--loss kl-queue --queue-size 2.5", "expected a whole number");
    refused("--queue-size many", "--queue-size many: expected a whole number"); /* also where no queue is */
}

static void what_a_loss_cannot_learn_is_refused(void **state) {
    (void)state;
    refused("--loss kl-logits", "--loss kl-logits compares class probabilities and needs --teacher-head FILE");
    refused("--loss none", "leaves nothing to learn");
    refused("--cls-weight 0 --patch-weight 0", "--loss std-mse with --cls-weight 0 and --patch-weight 0 leaves nothing to learn");
    refused("--cls-weight -1", "--cls-weight -1: expected a number from 0 on, or auto");
    refused("--patch-weight nan", "--patch-weight nan: expected a number from 0 on, or auto");
    refused("--patch-weight 1x", "--patch-weight 1x: expected");
    refused("--temperature 0", "--temperature 0: expected a number above 0, or auto");
    refused("--loss kl-queue --temperature hot", "--temperature hot: expected a number above 0, or auto");
    recipe.features = 1u << KD_FEATURE_CLS;
    refused("--loss cosine", "photos.kdc: the cache holds no patch features, which pair patch of loss cosine learns; give --patch-weight 0, or make a cache that has them");
    refused("--loss gram", "give --patch-weight 0");
    expands("--loss kl-queue", "global pooled>cls:1 raw linear; global=kl-queue(global)*1 T0.07 Q512");
    recipe.features = 1u << KD_FEATURE_PATCH;
    refused("", "photos.kdc: the cache holds no cls features, which pair cls of loss std-mse learns; give --cls-weight 0, or make a cache that has them");
    expands("--loss mse", "patch map>patch:1 raw linear; patch=mse(patch)*1");
}

static void add_ons_join_the_first_prediction_that_they_fit(void **state) {
    (void)state;
    expands("--gram-weight 2 --koleo-weight 0.1",
            "cls cls>cls:1 standard norm-linear; patch map>patch:1 standard norm-linear; cls=mse(cls)*1, patch=mse(patch)*1, gram=gram(patch)*2, koleo=koleo(cls)*0.1");
    expands("--loss kl-queue --koleo-weight 0.1", "global pooled>cls:1 raw linear; global=kl-queue(global)*1 T0.07 Q512, koleo=koleo(global)*0.1");
    recipe.layers = 2;
    recipe.layer[1] = 2;
    expands("--loss mse --gram-weight 1", "patch_1 map>patch:1 raw linear; patch_2 map>patch:2 raw linear; patch_1=mse(patch_1)*0.5, patch_2=mse(patch_2)*0.5, gram=gram(patch_1)*1");
    refused("--loss mse --koleo-weight 0.1", "--koleo-weight 0.1: loss mse learns no feature that is one vector to add it to");
    refused("--patch-weight 0 --gram-weight 1", "--gram-weight 1: loss std-mse learns no patches to add it to");
    refused("--koleo-weight 0.1 --batch-size 1", "koleo spreads the images of a batch, and --batch-size is 1; give at least 2");
    refused("--loss none --batch-size 1 --pair teacher=cls,loss=koleo", "--batch-size is 1; give at least 2");
}

static void a_pair_says_all_that_it_is(void **state) {
    (void)state;
    recipe.layers = 2;
    recipe.layer[1] = 4;
    recipe.features |= 1u << KD_FEATURE_MEAN;
    static const expansion cases[] = {
        {"--pair teacher=patch", "pair1 map>patch:1 standard norm-linear; pair1=mse(pair1)*1"},
        {"--pair teacher=cls", "pair1 cls>cls:1 standard norm-linear; pair1=mse(pair1)*1"},
        {"--pair teacher=mean:4,student=pooled", "pair1 pooled>mean:4 standard norm-linear; pair1=mse(pair1)*1"},
        {"--pair student=layer3,teacher=patch:4,weight=0.5", "pair1 layer3>patch:4 standard norm-linear; pair1=mse(pair1)*0.5"},
        {"--pair weight=1", "pair1 map>patch:1 standard norm-linear; pair1=mse(pair1)*1"},
        {"--pair name=deep_1,teacher=patch:4,scaling=raw,head=linear", "deep_1 map>patch:4 raw linear; deep_1=mse(deep_1)*1"},
        {"--pair teacher=patch,scaling=unit,head=mlp,hidden=96", "pair1 map>patch:1 unit mlp/96; pair1=mse(pair1)*1"},
        {"--pair teacher=patch,scaling=standard,head=mlp-gelu", "pair1 map>patch:1 standard mlp-gelu/2048; pair1=mse(pair1)*1"},
        {"--head mlp --head-hidden 12 --pair teacher=patch --pair teacher=cls,head=norm-linear", /* --head is for pairs that don't say */
         "pair1 map>patch:1 standard mlp/12; pair2 cls>cls:1 standard norm-linear; pair1=mse(pair1)*1, pair2=mse(pair2)*1"},
        {"--pair student=layer3,teacher=patch:4,loss=cosine:0.9+smooth-l1:0.1,beta=2,weight=0.5",
         "pair1 layer3>patch:4 standard norm-linear; pair1_cosine=cosine(pair1)*0.45, pair1_smooth_l1=smooth-l1(pair1)*0.05 b2"},
        {"--pair teacher=patch,loss=kl-intra+gram,temperature=0.1", "pair1 map>patch:1 standard norm-linear; pair1_kl_intra=kl-intra(pair1)*1 T0.1, pair1_gram=gram(pair1)*1"},
        {"--pair teacher=cls,loss=kl-queue,queue-size=20", "pair1 cls>cls:1 standard norm-linear; pair1=kl-queue(pair1)*1 T0.07 Q20"},
        {"--queue-size 30 --temperature 0.5 --pair teacher=cls,loss=kl-queue", "pair1 cls>cls:1 standard norm-linear; pair1=kl-queue(pair1)*1 T0.5 Q30"},
        {"--queue-size 30 --pair teacher=cls,loss=kl-queue,queue-size=auto", "pair1 cls>cls:1 standard norm-linear; pair1=kl-queue(pair1)*1 T0.07 Q512"},
        {"--pair teacher=cls,loss=mse+koleo:0.1", "pair1 cls>cls:1 standard norm-linear; pair1_mse=mse(pair1)*1, pair1_koleo=koleo(pair1)*0.1"},
        {"--teacher-layer 4 --pair teacher=patch --pair teacher=patch:1,name=last",
         "pair1 map>patch:4 standard norm-linear; last map>patch:1 standard norm-linear; pair1=mse(pair1)*1, last=mse(last)*1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char words[400];
        snprintf(words, sizeof words, "--loss none %s", cases[i].words);
        expands(words, cases[i].want);
    }
    expands("--pair teacher=cls:4,name=more,weight=2", /* beside a named loss */
            "cls cls>cls:1 standard norm-linear; patch map>patch:1 standard norm-linear; more cls>cls:4 standard norm-linear; cls=mse(cls)*1, patch=mse(patch)*1, more=mse(more)*2");
}

static void every_mistake_in_a_pair_has_its_sentence(void **state) {
    (void)state;
    static const expansion bad[] = {
        {"teacher", "--pair teacher: \"teacher\" isn't key=value"},
        {"teacher=patch,", "\"\" isn't key=value"},
        {"techer=patch", "unknown key \"techer\"; did you mean teacher"},
        {"colour=red", "--pair colour=red: unknown key \"colour\""},
        {"teacher=registers", "teacher feature \"registers\" isn't cls, patch or mean"},
        {"teacher=patch:0", "teacher layer \"0\" isn't a whole number from 1 (the last) on"},
        {"teacher=patch:1.5", "teacher layer \"1.5\" isn't"},
        {"teacher=patch:last", "teacher layer \"last\" isn't"},
        {"teacher=patch:70000", "teacher layer \"70000\" isn't"},
        {"teacher=patch:2", "pair pair1: photos.kdc holds no layer 2; kd-cache info lists"},
        {"teacher=mean", "photos.kdc: the cache holds no mean features, which pair pair1 of loss none learns; leave the pair out, or make a cache that has them"},
        {"student=a_name_that_is_much_longer_than_any_feature_of_any_student_could_be", "no student has a feature called \"a_name"},
        {"loss=mes", "loss \"mes\" isn't one of mse, cosine, smooth-l1, kl-queue, kl-intra, gram, koleo"},
        {"loss=", "loss \"\" isn't one of"},
        {"loss=mse+", "loss \"\" isn't one of"},
        {"teacher=cls,loss=kl-logits", "loss \"kl-logits\" isn't one of"},
        {"loss=mse:0", "share \"0\" isn't a number above 0"},
        {"loss=mse:half", "share \"half\" isn't a number above 0"},
        {"loss=mse+mse", "two terms are called pair1_mse; name each loss of a pair once"},
        {"teacher=cls,loss=gram", "pair pair1: loss gram is for patches, and its teacher feature is cls"},
        {"teacher=cls,loss=kl-intra", "loss kl-intra is for patches"},
        {"teacher=patch,loss=kl-queue", "pair pair1: loss kl-queue is for features that are one vector, and its teacher feature is patch"},
        {"teacher=patch,loss=koleo", "loss koleo is for features that are one vector"},
        {"weight=0", "weight \"0\" isn't a number above 0"},
        {"weight=-1", "weight \"-1\" isn't a number above 0"},
        {"weight=inf", "weight \"inf\" isn't a number above 0"},
        {"weight=", "weight \"\" isn't a number above 0"},
        {"temperature=0", "temperature \"0\" isn't a number above 0"},
        {"beta=x", "beta \"x\" isn't a number above 0"},
        {"scaling=stanadrd", "scaling \"stanadrd\" is unknown, did you mean standard; it is one of standard, raw, unit"},
        {"head=mpl", "head \"mpl\" is unknown, did you mean mlp; it is one of norm-linear, linear, mlp, mlp-gelu"},
        {"hidden=0", "hidden \"0\" isn't a number above 0"},
        {"hidden=1.5", "hidden \"1.5\" isn't a whole number from 1 to 65536"},
        {"hidden=65537", "hidden \"65537\" isn't a whole number from 1 to 65536"},
        {"queue-size=x", "--pair queue-size=x: queue-size x: expected a whole number from 1 on, or auto"},
        {"teacher=cls,loss=kl-queue,queue-size=1200", "queue-size 1200: photos.kdc has 1200 images"},
        {"name=", "name \"\" must be 1 to 29 letters, digits or '_'"},
        {"name=a.b", "name \"a.b\" must be"},
        {"name=recipe_1", "not begin with recipe_"},
        {"name=a_name_of_more_than_29_letters", "must be 1 to 29"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char words[400];
        snprintf(words, sizeof words, "--loss none --pair %s", bad[i].words);
        refused(words, bad[i].want);
    }
    char longest[700], words[800];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    snprintf(words, sizeof words, "--pair name=%s", longest);
    refused(words, "is longer than 599 characters");
    snprintf(words, sizeof words, "--pair loss=%.300s", longest);
    refused(words, "too many losses");
}

static void names_are_used_once(void **state) {
    (void)state;
    refused("--pair name=patch", "two pairs are called patch; add name=... to one");
    refused("--loss none --pair name=a --pair name=a", "two pairs are called a; add name=... to one");
    refused("--pair name=gram --gram-weight 1", "two terms are called gram");
    refused("--loss none --pair name=a,loss=mse+cosine --pair name=a_mse", "two terms are called a_mse");
}

static void too_many_is_said(void **state) {
    (void)state;
    char words[800] = "--loss none";
    for (int i = 0; i < KD_MAX_PAIRS; i++)
        snprintf(words + strlen(words), sizeof words - strlen(words), " --pair teacher=patch,loss=mse+cosine");
    assert_ok(build(words));
    assert_int_equal(loss.pairs, KD_MAX_PAIRS);
    assert_int_equal(loss.terms, KD_MAX_TERMS);
    snprintf(words + strlen(words), sizeof words - strlen(words), " --gram-weight 1");
    refused(words, "loss none has more than 16 terms");
    snprintf(words, sizeof words, "--loss std-mse");
    for (int i = 0; i < KD_MAX_PAIRS - 1; i++)
        snprintf(words + strlen(words), sizeof words - strlen(words), " --pair teacher=patch");
    refused(words, "loss std-mse has more than 8 pairs");
}

static void a_config_file_may_write_a_pair_as_a_mapping(void **state) {
    (void)state;
    char *folder = unit_folder(), path[4200];
    static const char text[] = "cache: c\nimages: i\nout: o\nstudent: [resnet18]\nloss: none\nteacher-layer: 1\npair:\n  - {student: layer3, teacher: patch, loss: \"cosine:0.9+smooth-l1:0.1\", weight: 0.5}\n"
                               "  - teacher=cls,name=second\n";
    snprintf(path, sizeof path, "%s/c.yaml", folder);
    unit_write(path, text, strlen(text));
    config = (kd_train_config){0};
    assert_ok(kd_options_parse(&kd_train_program, &config, 3, (char *[]){"kd-train", "--config", path}, NULL, arena, &err));
    assert_ok(kd_loss_from_config(&loss, &config, &offer, &err));
    assert_string_equal(text_of(&loss), "pair1 layer3>patch:1 standard norm-linear; second cls>cls:1 standard norm-linear; pair1_cosine=cosine(pair1)*0.45, pair1_smooth_l1=smooth-l1(pair1)*0.05 b1, "
                                        "second=mse(second)*1");
    free(folder);
}

static const char *warning_of(const char *words) {
    assert_int_equal(build(words), KD_OK);
    return loss.warning;
}

static void weights_that_do_not_sum_to_one_are_said(void **state) {
    (void)state;
    assert_contains(warning_of("--loss none --pair weight=0.5 --pair teacher=cls,weight=0.7"), "the weights of the pairs sum to 1.2 and not to 1");
    assert_string_equal(warning_of("--loss none --pair weight=0.3 --pair teacher=cls,weight=0.7"), "");
    assert_string_equal(warning_of("--pair weight=0.3"), ""); /* beside a named loss they are what is added */
}

static void mse_says_when_it_is_not_lightlytrains(void **state) {
    (void)state;
    assert_contains(warning_of("--loss mse"), "of those that photos.kdc holds, layer 1 is learnt alone");
    recipe.layers = 2;
    recipe.layer[1] = 2;
    assert_string_equal(warning_of("--loss mse"), "");
    assert_contains(warning_of("--loss mse --teacher-layer 2"), "layer 2 is learnt alone");
    recipe.layers = 1;
    recipe.concat = 1;
    assert_string_equal(warning_of("--loss mse"), "");
}

static void the_plan_names_terms_and_weights(void **state) {
    (void)state;
    char buf[200], small[12];
    assert_ok(build("--loss radio"));
    assert_string_equal(kd_loss_text(&loss, buf, sizeof buf), "radio: cls 1, patch_cosine 0.9, patch_smooth_l1 0.1");
    assert_string_equal(kd_loss_text(&loss, small, sizeof small), "radio: cls ");
}

static void what_needs_single_tokens_is_named(void **state) {
    (void)state;
    assert_ok(build("--loss std-mse"));
    assert_null(kd_pair_single_tokens(&loss, 1));
    assert_ok(build("--loss std-mse --gram-weight 1"));
    assert_null(kd_pair_single_tokens(&loss, 0));
    assert_string_equal(kd_pair_single_tokens(&loss, 1), "gram");
    assert_ok(build("--loss mse-normalized"));
    assert_string_equal(kd_pair_single_tokens(&loss, 1), "unit lengths");
    assert_ok(build("--loss mse"));
    assert_null(kd_pair_single_tokens(&loss, 0));
}

int main(void) {
#define T(f) cmocka_unit_test_setup_teardown(f, fresh, drop)
    const struct CMUnitTest tests[] = {
        T(every_name_expands_to_its_pairs_and_terms), T(no_name_of_the_option_is_left_out_here), T(explicit_options_win), T(mse_learns_the_last_two_layers_that_are_stored),
        T(queues_follow_lightlytrains_table), T(what_a_loss_cannot_learn_is_refused), T(add_ons_join_the_first_prediction_that_they_fit), T(a_pair_says_all_that_it_is),
        T(every_mistake_in_a_pair_has_its_sentence), T(names_are_used_once), T(too_many_is_said), T(a_config_file_may_write_a_pair_as_a_mapping),
        T(weights_that_do_not_sum_to_one_are_said), T(mse_says_when_it_is_not_lightlytrains), T(the_plan_names_terms_and_weights), T(what_needs_single_tokens_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
