/* Notes each write, sync and rename of a process in the order in which the system gets them, and lets one sync fail.
   SYNC_LOG: the file of notes. SYNC_FAILS: which one sync fails, counted from 1. SYNC_ONLY: part of
   the paths that are noted and counted at all. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int n_syncs = 0;

static void note(const char *what, const char *path) {
    const char *log = getenv("SYNC_LOG");
    if (!log || !path || strstr(path, log)) return;
    char line[5000];
    int length = snprintf(line, sizeof line, "%d %s %s\n", getpid(), what, path);
    int file = open(log, O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (file < 0) return;
    if (write(file, line, length) < 0) {
    }
    close(file);
}

static void name_of(int file, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, size - 1);
    path[length < 0 ? 0 : length] = 0;
}

static int synced(int file, const char *name) {
    char path[4096];
    name_of(file, path, sizeof path);
    const char *only = getenv("SYNC_ONLY"), *fails = getenv("SYNC_FAILS");
    if (only && !strstr(path, only)) return ((int (*)(int))dlsym(RTLD_NEXT, name))(file);
    note("sync", path);
    if (fails && __sync_add_and_fetch(&n_syncs, 1) == atoi(fails)) {
        note("fail", path);
        errno = EIO;
        return -1;
    }
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(file);
}

int fsync(int file) { return synced(file, "fsync"); }
int fdatasync(int file) { return synced(file, "fdatasync"); }

int rename(const char *from, const char *to) {
    note("rename", to);
    return ((int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename"))(from, to);
}
