//! `memcpy` and its kin, which the compiler calls and no C library supplies here.
//!
//! In assembly, because a loop in Rust would be compiled to a call of the very function. Small sizes take
//! overlapping moves without a loop; large ones `rep movsb` and `rep stosb`, which every processor since 2013 runs a cache
//! line at a time. The stretch between goes by 64 bytes in SSE registers.

use core::arch::global_asm;

/// From how many bytes on the string instructions win over a loop.
const STRING_FROM: usize = 768;

global_asm!(
    r#"
    .macro function name
    .p2align 5
    .globl foraker_\name
    .type foraker_\name, @function
foraker_\name:
    .endm

    // Sections of their own, so that a guest without need for one is linked without it.
    .section .text.hot.memmove, "ax", @progbits
    function memmove
    mov rax, rdi
    sub rax, rsi
    cmp rax, rdx
    jb 20f              // the target starts inside the source: from the end

    // Falls through (padding is made of no-ops): copies forward.
    function memcpy
    mov rax, rdi
    cmp rdx, 16
    jb 3f
    cmp rdx, 32
    ja 5f
    movups xmm0, [rsi]
    movups xmm1, [rsi + rdx - 16]
    movups [rdi], xmm0
    movups [rdi + rdx - 16], xmm1
    ret
3:  cmp edx, 8
    jb 4f
    mov rcx, [rsi]
    mov r8, [rsi + rdx - 8]
    mov [rdi], rcx
    mov [rdi + rdx - 8], r8
    ret
4:  cmp edx, 4
    jb 2f
    mov ecx, [rsi]
    mov r8d, [rsi + rdx - 4]
    mov [rdi], ecx
    mov [rdi + rdx - 4], r8d
    ret
2:  test edx, edx
    jz 1f
    movzx ecx, byte ptr [rsi]
    movzx r8d, byte ptr [rsi + rdx - 1]
    cmp edx, 2
    jbe 0f
    movzx r9d, byte ptr [rsi + 1]
    mov [rdi + 1], r9b
0:  mov [rdi], cl
    mov [rdi + rdx - 1], r8b
1:  ret
5:  cmp rdx, 64
    ja 6f
    movups xmm0, [rsi]
    movups xmm1, [rsi + 16]
    movups xmm2, [rsi + rdx - 32]
    movups xmm3, [rsi + rdx - 16]
    movups [rdi], xmm0
    movups [rdi + 16], xmm1
    movups [rdi + rdx - 32], xmm2
    movups [rdi + rdx - 16], xmm3
    ret
6:  cmp rdx, {string}
    jae 9f
    // The last 64 bytes are read first, so that memmove may come here too.
    movups xmm4, [rsi + rdx - 64]
    movups xmm5, [rsi + rdx - 48]
    movups xmm6, [rsi + rdx - 32]
    movups xmm7, [rsi + rdx - 16]
    lea r8, [rdi + rdx - 64]
7:  movups xmm0, [rsi]
    movups xmm1, [rsi + 16]
    movups xmm2, [rsi + 32]
    movups xmm3, [rsi + 48]
    movups [rdi], xmm0
    movups [rdi + 16], xmm1
    movups [rdi + 32], xmm2
    movups [rdi + 48], xmm3
    add rsi, 64
    add rdi, 64
    cmp rdi, r8
    jb 7b
    movups [r8], xmm4
    movups [r8 + 16], xmm5
    movups [r8 + 32], xmm6
    movups [r8 + 48], xmm7
    ret
9:  mov rcx, rdx
    rep movsb
    ret
20: // Copies backward, by 16 bytes; what is left at the front is less than 16 bytes and is read first.
    mov rax, rdi
    cmp rdx, 16
    jb 23f
    movups xmm1, [rsi]
21: movups xmm0, [rsi + rdx - 16]
    movups [rdi + rdx - 16], xmm0
    sub rdx, 16
    cmp rdx, 16
    jae 21b
    movups [rdi], xmm1
    ret
23: test edx, edx
    jz 24f
22: movzx ecx, byte ptr [rsi + rdx - 1]
    mov [rdi + rdx - 1], cl
    dec edx
    jnz 22b
24: ret

    .section .text.hot.memset, "ax", @progbits
    function memset
    mov rax, rdi
    movzx esi, sil
    mov rcx, 0x0101010101010101
    imul rsi, rcx
    cmp rdx, 16
    jb 33f
    cmp rdx, {string}
    jae 39f
    movq xmm0, rsi
    punpcklqdq xmm0, xmm0
    lea r8, [rdi + rdx - 16]
31: movups [rdi], xmm0
    add rdi, 16
    cmp rdi, r8
    jb 31b
    movups [r8], xmm0
    ret
33: cmp edx, 8
    jb 34f
    mov [rdi], rsi
    mov [rdi + rdx - 8], rsi
    ret
34: cmp edx, 4
    jb 35f
    mov [rdi], esi
    mov [rdi + rdx - 4], esi
    ret
35: test edx, edx
    jz 36f
    mov [rdi], sil
    mov [rdi + rdx - 1], sil
    cmp edx, 2
    jbe 36f
    mov [rdi + 1], sil
36: ret
39: mov r8, rdi
    mov eax, esi
    mov rcx, rdx
    rep stosb
    mov rax, r8
    ret

    .section .text.hot.memcmp, "ax", @progbits
    function memcmp
    cmp rdx, 8
    jb 43f
    lea r8, [rdx - 8]
    xor ecx, ecx
41: mov rax, [rdi + rcx]
    mov r9, [rsi + rcx]
    cmp rax, r9
    jne 42f
    cmp rcx, r8
    je 45f
    add rcx, 8
    cmp rcx, r8
    cmova rcx, r8       // the last step overlaps the one before
    jmp 41b
42: bswap rax
    bswap r9
    cmp rax, r9
    sbb eax, eax
    or eax, 1
    ret
43: xor ecx, ecx
44: cmp rcx, rdx
    je 45f
    movzx eax, byte ptr [rdi + rcx]
    movzx r9d, byte ptr [rsi + rcx]
    inc rcx
    sub eax, r9d
    je 44b
    ret
45: xor eax, eax
    ret

    .section .text.hot.strlen, "ax", @progbits
    function strlen
    mov rax, rdi
51: cmp byte ptr [rax], 0
    lea rax, [rax + 1]
    jne 51b
    sub rax, rdi
    dec rax
    ret
    .text
    "#,
    string = const STRING_FROM,
);

// The names that the compiler calls. A comparison that also orders is one that tells whether two are equal.
#[cfg(not(test))]
global_asm!(
    r#"
    .macro alias name, target
    .globl \name
    .type \name, @function
    .set \name, foraker_\target
    .endm
    alias memcpy, memcpy
    alias memmove, memmove
    alias memset, memset
    alias memcmp, memcmp
    alias bcmp, memcmp
    alias strlen, strlen
    "#
);

#[cfg(test)]
mod tests {
    // SAFETY: defined above, with the signatures of the C library's.
    unsafe extern "C" {
        fn foraker_memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8;
        fn foraker_memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8;
        fn foraker_memset(to: *mut u8, value: i32, n: usize) -> *mut u8;
        fn foraker_memcmp(a: *const u8, b: *const u8, n: usize) -> i32;
        fn foraker_strlen(a: *const u8) -> usize;
    }

    fn sizes() -> impl Iterator<Item = usize> {
        (0..300).chain([511, 512, 767, 768, 769, 1000, 1514, 4096, 5000])
    }

    fn pattern(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 31 + i / 251) as u8).collect()
    }

    #[test]
    fn copies_every_size_and_nothing_beside() {
        for n in sizes() {
            let from = pattern(n);
            let mut to = vec![0xaa; n + 32];
            // SAFETY: both hold `n` bytes.
            let result = unsafe { foraker_memcpy(to[16..].as_mut_ptr(), from.as_ptr(), n) };
            assert_eq!(result, to[16..].as_mut_ptr());
            assert_eq!(&to[16..16 + n], &from[..], "{n}");
            assert!(to[..16].iter().chain(&to[16 + n..]).all(|&b| b == 0xaa), "{n}");
        }
    }

    #[test]
    fn moves_overlapping_ranges_both_ways() {
        for n in sizes() {
            for shift in [0usize, 1, 3, 8, 15, 16, 17, 63, 64, 100, 900] {
                let all = pattern(n + shift);
                let mut up = all.clone();
                // SAFETY: `up` holds `n + shift` bytes.
                unsafe { foraker_memmove(up.as_mut_ptr().add(shift), up.as_ptr(), n) };
                assert_eq!(&up[shift..], &all[..n], "up {n} {shift}");
                let mut down = all.clone();
                // SAFETY: as above.
                unsafe { foraker_memmove(down.as_mut_ptr(), down.as_ptr().add(shift), n) };
                assert_eq!(&down[..n], &all[shift..], "down {n} {shift}");
            }
        }
    }

    #[test]
    fn fills_every_size_and_nothing_beside() {
        for n in sizes() {
            let mut to = vec![0xaa; n + 32];
            // SAFETY: holds `n` bytes from 16 on.
            let result = unsafe { foraker_memset(to[16..].as_mut_ptr(), 0x15c, n) };
            assert_eq!(result, to[16..].as_mut_ptr());
            assert!(to[16..16 + n].iter().all(|&b| b == 0x5c), "{n}");
            assert!(to[..16].iter().chain(&to[16 + n..]).all(|&b| b == 0xaa), "{n}");
        }
    }

    #[test]
    fn compares_like_slices() {
        for n in sizes() {
            let a = pattern(n);
            // SAFETY: both hold `n` bytes.
            let compare = |b: &[u8]| unsafe { foraker_memcmp(a.as_ptr(), b.as_ptr(), n) };
            assert_eq!(compare(&a.clone()), 0);
            for at in (0..n).step_by(1 + n / 40) {
                for change in [1u8, 0x80] {
                    let mut b = a.clone();
                    b[at] ^= change;
                    assert_eq!(compare(&b).signum(), a.cmp(&b) as i32, "{n} {at}");
                }
            }
        }
    }

    #[test]
    fn finds_the_end_of_a_string() {
        for text in [&b"\0"[..], b"a\0", b"hello\0x"] {
            let length = text.iter().position(|&b| b == 0).unwrap();
            // SAFETY: `text` holds a NUL.
            assert_eq!(unsafe { foraker_strlen(text.as_ptr()) }, length);
        }
    }
}
