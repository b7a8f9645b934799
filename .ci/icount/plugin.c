/* A plugin of qemu's user-mode emulation that counts the instructions that one thread of
 * the guest executes between two marks. A mark is a system call, whichever, whose first
 * argument is MARK: the second one prints "icount N" on standard error, and so on by turns.
 *
 * Written against version 1 of the plugin interface (qemu 6 to 8); Debian's packages have no
 * header for it, so the declarations that are used stand here.
 */
#include <stdint.h>
#include <stddef.h>
#include <stdio.h>

#define MARK 0x69636e74 /* what esp/aead/aeadtest passes */
#define THREADS 256

struct qemu_plugin_tb;
typedef void (*translated_fn)(uint64_t id, struct qemu_plugin_tb *tb);
typedef void (*executed_fn)(unsigned int cpu, void *data);
typedef void (*syscall_fn)(uint64_t id, unsigned int cpu, int64_t num, uint64_t a1, uint64_t a2,
	uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);

void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, translated_fn fn);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, executed_fn fn, int registers, void *data);
void qemu_plugin_register_vcpu_syscall_cb(uint64_t id, syscall_fn fn);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

/* One row for each thread, which alone writes it. */
static struct {
	uint64_t executed, since;
	int counting;
} thread[THREADS];

static void block_executed(unsigned int cpu, void *instructions)
{
	if (cpu < THREADS)
		thread[cpu].executed += (uintptr_t)instructions;
}

static void block_translated(uint64_t id, struct qemu_plugin_tb *tb)
{
	(void)id;
	qemu_plugin_register_vcpu_tb_exec_cb(tb, block_executed, 0, (void *)(uintptr_t)qemu_plugin_tb_n_insns(tb));
}

static void system_call(uint64_t id, unsigned int cpu, int64_t num, uint64_t a1, uint64_t a2,
	uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
	(void)id, (void)num, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
	if (cpu >= THREADS || (uint32_t)a1 != MARK)
		return;
	if (thread[cpu].counting)
		fprintf(stderr, "icount %llu\n", (unsigned long long)(thread[cpu].executed - thread[cpu].since));
	thread[cpu].counting = !thread[cpu].counting;
	thread[cpu].since = thread[cpu].executed;
}

__attribute__((visibility("default")))
int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
	(void)info, (void)argc, (void)argv;
	qemu_plugin_register_vcpu_tb_trans_cb(id, block_translated);
	qemu_plugin_register_vcpu_syscall_cb(id, system_call);
	return 0;
}
