/* huge.c FILE BYTES: maps a new file on hugetlbfs, fills it, and says whether it holds what was written. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv) {
    size_t size = argc == 3 ? strtoul(argv[2], NULL, 10) : 0, wrong = 0;
    int file = open(argv[1], O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, (off_t)size))
        return 2;
    uint32_t *words = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (words == MAP_FAILED)
        return 3;
    for (size_t i = 0; i < size / sizeof *words; i++)
        words[i] = (uint32_t)i * 2654435761u;
    for (size_t i = 0; i < size / sizeof *words; i++)
        wrong += words[i] != (uint32_t)i * 2654435761u;
    printf("%zu wrong\n", wrong);
    fflush(stdout);
    sleep(600); /* The file stays as it is until this is killed. */
    return 0;
}
