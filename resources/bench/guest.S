/*
 * Guests of a few bytes for `cargo xtask bench`: one file, and of it what the macro GUEST_… chooses. Each is entered in
 * long mode at 1 MiB, says one byte over the first serial port when it is where it shall be timed from, and has no
 * interrupts and no memory of its own but what is in this file. GUEST_C goes on in another one, in C (guest.h).
 */
#define SERIAL 0x3f8
#define SCRATCH 0x3ff /* a register of the serial port that only keeps its value */
#define SLEEP 0x600   /* the ACPI sleep control register of mvm's machine */
#define TSS_SIZE (104 + 8192 + 1)
#define MMIO 0xd0000000 /* the first virtio-mmio device, whose first register is constant */

.macro say byte
    movw $SERIAL, %dx
    movb $\byte, %al
    outb %al, %dx
.endm

.macro power_off
    movw $SLEEP, %dx
    movb $0x34, %al
    outb %al, %dx
.endm

/*
 * To CPL 3, which may use all ports: where KVM interprets the guest's kernel, its user mode runs at the processor's own
 * speed. The first 4 GiB are mapped one to one for both. IOPL 3 should do for the ports; kvm_pvm asks the task's bitmap
 * of ports all the same, so there is one.
 */
.macro to_user_mode
    leal tables(%rip), %edi
    leal 0x1007(%rdi), %eax
    movl %eax, (%rdi)               /* PML4: one directory pointer table */
    leal 0x2007(%rdi), %eax
    leal 0x1000(%rdi), %ebx
    movl $4, %ecx
1:  movl %eax, (%rbx)               /* which has four directories */
    addl $0x1000, %eax
    addl $8, %ebx
    decl %ecx
    jnz 1b
    leal 0x2000(%rdi), %ebx
    movl $0x87, %eax                /* present, writable, user, 2 MiB */
    movl $2048, %ecx
2:  movl %eax, (%rbx)
    addl $0x200000, %eax
    addl $8, %ebx
    decl %ecx
    jnz 2b
    movq %rdi, %cr3
    leal tss(%rip), %eax
    movw $104, 102(%rax)            /* the bitmap of ports: all allowed */
    shlq $16, %rax
    orq %rax, gdt_tss(%rip)
    leal gdt(%rip), %eax
    movl %eax, 2 + gdt_pointer(%rip)
    lgdt gdt_pointer(%rip)
    movw $0x30, %ax
    ltr %ax
    leal stack_end(%rip), %esp
    pushq $0x23                     /* SS */
    pushq %rsp
    pushq $0x3002                   /* RFLAGS: IOPL 3 */
    pushq $0x2b                     /* CS */
    leal 3f(%rip), %eax
    pushq %rax
    iretq
3:
.endm

.code64
.text
.globl _start
_start:
#if defined(GUEST_IDLE) || defined(GUEST_IDLE_PVH)
    say 'h'
1:  sti /* a guest that halts without is at its end */
    hlt
    jmp 1b
#elif defined(GUEST_END)
    say 'h'
    power_off
1:  jmp 1b
#elif defined(GUEST_PORT)
    to_user_mode
    say '<'
    movl $COUNT, %ecx
    movw $SCRATCH, %dx
1:  outb %al, %dx
    decl %ecx
    jnz 1b
    say '>'
    power_off
2:  jmp 2b
#elif defined(GUEST_MMIO)
    to_user_mode
    say '<'
    movl $COUNT, %ecx
    movl $MMIO, %ebx
1:  movl (%rbx), %eax
    decl %ecx
    jnz 1b
    say '>'
    power_off
2:  jmp 2b
#elif defined(GUEST_C)
    to_user_mode
    movq %rsi, %rdi                 /* struct boot_params, still where the boot protocol puts it */
    call guest
    power_off
1:  jmp 1b
#else
#error "which guest?"
#endif

#ifdef GUEST_IDLE_PVH
/* QEMU takes an ELF file by this note (XEN_ELFNOTE_PHYS32_ENTRY) alone, and enters it in 32-bit mode, where the bytes of
   the idle guest mean the same. */
.section .note.Xen, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long _start
#endif

.data
.balign 8
gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff        /* 0x10: the kernel's code */
    .quad 0x00cf93000000ffff        /* 0x18: its data */
    .quad 0x00cff3000000ffff        /* 0x20: the user's data */
    .quad 0x00affb000000ffff        /* 0x28: its code */
gdt_tss:
    .quad 0x0000890000000000 + TSS_SIZE - 1, 0 /* 0x30 */
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad 0

.bss
.balign 4096
tables:
    .skip 6 * 4096
tss:
    .skip TSS_SIZE
.balign 16
stack:
    .skip 4096
stack_end:
