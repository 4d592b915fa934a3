/* Makes a program believe that it runs on a lesser processor, for comparisons: every peer asks the processor itself what it
 * can do, and only oneDNN can be told otherwise. Intel's processors and Linux let a process have CPUID trap; the trap answers
 * with AVX-512 and AMX taken away (LESSER=avx2), AMX alone (LESSER=avx512), or nothing (LESSER=same: what the trap costs).
 *
 *     cc -O2 -shared -fPIC -o lesser.so lesser.c && LESSER=avx2 LD_PRELOAD=./lesser.so program
 *
 * Needs `cpuid_fault` among the flags of /proc/cpuinfo; ends the program where that is missing. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012 /* asm/prctl.h: 0 has CPUID trap, in this thread and those it starts */
#define BIT(n) (1u << (n))

static int no_amx, no_avx512;

static long allow_cpuid(unsigned long yes) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, yes); }

static void answer(int signal_number, siginfo_t *info, void *context)
{
    greg_t *at = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *code = (const uint8_t *)at[REG_RIP];
    uint32_t leaf = at[REG_RAX], part = at[REG_RCX], a, b, c, d;
    (void)info;
    if (code[0] != 0x0f || code[1] != 0xa2) { /* a fault of the program's own: it comes again, and ends it */
        signal(signal_number, SIG_DFL);
        return;
    }
    allow_cpuid(1);
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "0"(leaf), "2"(part));
    allow_cpuid(0);
    if (leaf == 7 && part == 0) {
        if (no_amx)
            d &= ~(BIT(22) | BIT(24) | BIT(25)); /* bf16, tiles, int8 */
        if (no_avx512) {
            b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
            c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));
            d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(23));
        }
    }
    if (leaf == 7 && part == 1) {
        if (no_amx)
            a &= ~BIT(21); /* fp16 */
        if (no_avx512)
            a &= ~(BIT(4) | BIT(5)); /* AVX-VNNI came after AVX2; bf16 */
    }
    if (leaf == 0xd && part == 0) /* what the system saves: tiles, and masks and upper halves */
        a &= ~((no_amx ? BIT(17) | BIT(18) : 0) | (no_avx512 ? BIT(5) | BIT(6) | BIT(7) : 0));
    at[REG_RAX] = a;
    at[REG_RBX] = b;
    at[REG_RCX] = c;
    at[REG_RDX] = d;
    at[REG_RIP] += 2;
}

__attribute__((constructor)) static void start(void)
{
    struct sigaction action;
    const char *level = getenv("LESSER");
    no_avx512 = level && !strcmp(level, "avx2");
    no_amx = no_avx512 || (level && !strcmp(level, "avx512"));
    if (!no_amx && (!level || strcmp(level, "same"))) {
        fprintf(stderr, "lesser: LESSER is avx2, avx512 or same\n");
        exit(2);
    }
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigaction(SIGSEGV, &action, NULL);
    if (allow_cpuid(0)) {
        perror("lesser: CPUID cannot trap here");
        exit(2);
    }
}
