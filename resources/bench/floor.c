/*
 * The floor for `cargo xtask bench`: a guest on KVM with nothing around it. The same calls to KVM that mvm makes for a
 * machine of one processor, and no devices but a serial port that only sends and a register that ends it all.
 *
 * floor KERNEL MIB: loads an ELF file and runs it; bytes of the guest go to standard output as they come.
 */
#include <elf.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SERIAL 0x3f8
#define SLEEP 0x600
#define VIRTIO_MAGIC 0x74726976

static void fail(const char *what)
{
    perror(what);
    _exit(1);
}

static long call(int fd, unsigned long request, void *argument, const char *what)
{
    int result = ioctl(fd, request, argument);
    if (result < 0)
        fail(what);
    return result;
}

/* Copies the segments of the kernel to where they are loaded; the entry. */
static uint64_t load(const char *path, char *ram, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    Elf64_Ehdr header;
    if (fd < 0 || pread(fd, &header, sizeof header, 0) != sizeof header)
        fail(path);
    for (int i = 0; i < header.e_phnum; i++) {
        Elf64_Phdr segment;
        if (pread(fd, &segment, sizeof segment, header.e_phoff + i * sizeof segment) != sizeof segment)
            fail(path);
        if (segment.p_type != PT_LOAD || segment.p_paddr + segment.p_memsz > size)
            continue;
        if (pread(fd, ram + segment.p_paddr, segment.p_filesz, segment.p_offset) != (ssize_t)segment.p_filesz)
            fail(path);
    }
    close(fd);
    return header.e_entry;
}

/* Page tables that map the first GiB one to one, at 36 KiB as mvm has them. */
static void map(char *ram)
{
    uint64_t *pml4 = (uint64_t *)(ram + 0x9000), *pdpt = pml4 + 512, *directory = pdpt + 512;
    pml4[0] = 0xa003;
    pdpt[0] = 0xb003;
    for (uint64_t i = 0; i < 512; i++)
        directory[i] = i << 21 | 0x83;
}

static void long_mode(struct kvm_sregs *s)
{
    struct kvm_segment code = {.limit = ~0u, .selector = 0x10, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    struct kvm_segment data = {.limit = ~0u, .selector = 0x18, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    s->cs = code;
    s->ds = s->es = s->fs = s->gs = s->ss = data;
    s->cr0 |= 0x80000001;
    s->cr3 = 0x9000;
    s->cr4 |= 0x20;
    s->efer |= 0x500;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: floor KERNEL MIB\n");
        return 2;
    }
    size_t size = (size_t)atol(argv[2]) << 20;
    char *ram = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ram == MAP_FAILED)
        fail("mmap");
    uint64_t entry = load(argv[1], ram, size);
    map(ram);

    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0)
        fail("/dev/kvm");
    int vm = call(kvm, KVM_CREATE_VM, NULL, "KVM_CREATE_VM");
    uint64_t identity = 0xfffbc000;
    call(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity, "KVM_SET_IDENTITY_MAP_ADDR");
    call(vm, KVM_SET_TSS_ADDR, (void *)0xfffbd000, "KVM_SET_TSS_ADDR");
    struct kvm_userspace_memory_region slot = {.memory_size = size, .userspace_addr = (uint64_t)ram};
    call(vm, KVM_SET_USER_MEMORY_REGION, &slot, "KVM_SET_USER_MEMORY_REGION");
    call(vm, KVM_CREATE_IRQCHIP, NULL, "KVM_CREATE_IRQCHIP");
    int cpu = call(vm, KVM_CREATE_VCPU, NULL, "KVM_CREATE_VCPU");
    long run_size = call(kvm, KVM_GET_VCPU_MMAP_SIZE, NULL, "KVM_GET_VCPU_MMAP_SIZE");
    struct kvm_run *run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
    if (run == MAP_FAILED)
        fail("mmap of the vCPU");

    enum { ENTRIES = 256 };
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + ENTRIES * sizeof cpuid->entries[0]);
    cpuid->nent = ENTRIES;
    call(kvm, KVM_GET_SUPPORTED_CPUID, cpuid, "KVM_GET_SUPPORTED_CPUID");
    call(cpu, KVM_SET_CPUID2, cpuid, "KVM_SET_CPUID2");
    struct kvm_sregs special;
    call(cpu, KVM_GET_SREGS, &special, "KVM_GET_SREGS");
    long_mode(&special);
    call(cpu, KVM_SET_SREGS, &special, "KVM_SET_SREGS");
    struct kvm_regs general = {.rip = entry, .rflags = 2};
    call(cpu, KVM_SET_REGS, &general, "KVM_SET_REGS");

    for (;;) {
        call(cpu, KVM_RUN, NULL, "KVM_RUN");
        if (run->exit_reason == KVM_EXIT_IO) {
            if (run->io.port == SERIAL && write(1, (char *)run + run->io.data_offset, run->io.size) < 0)
                return 1;
            if (run->io.port == SLEEP)
                return 0;
        } else if (run->exit_reason == KVM_EXIT_MMIO) {
            uint32_t value = VIRTIO_MAGIC;
            if (!run->mmio.is_write)
                memcpy(run->mmio.data, &value, sizeof value);
        } else {
            fprintf(stderr, "floor: exit reason %u\n", run->exit_reason);
            return 1;
        }
    }
}
