//! Filters: a table as a program that the kernel runs before each system call (seccomp, `man 2 seccomp`).
//!
//! Calls that are allowed whatever their arguments are cost next to nothing, as the kernel keeps a list of them. It does run the program for the others, whose
//! rules stand in the order in which the table has them.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction};

use crate::call::Rule;
use crate::kind::Kind;
use crate::program;

/// The programs of one kind of thread, installed in this order.
#[derive(Debug)]
pub(crate) struct Filter(Vec<BpfProgram>);

/// What a kind may ask for: rules by the call's number, none if it always may.
pub(crate) fn merged(kind: Kind) -> BTreeMap<i64, Vec<Rule>> {
    let mut calls: BTreeMap<i64, Vec<Rule>> = BTreeMap::new();
    for call in kind.calls() {
        match calls.get_mut(&call.number) {
            None => _ = calls.insert(call.number, call.rules.to_vec()),
            // Always allowed already.
            Some(rules) if rules.is_empty() => {}
            Some(rules) if call.rules.is_empty() => rules.clear(),
            Some(rules) => {
                let new: Vec<_> = call.rules.iter().filter(|rule| !rules.contains(rule)).copied().collect();
                rules.extend(new);
            }
        }
    }
    calls
}

impl Filter {
    /// Makes the programs for a kind of thread of this process.
    pub(crate) fn new(kind: Kind) -> Filter {
        let (allow, kill) = (SeccompAction::Allow.into(), SeccompAction::KillProcess.into());
        let mut programs = Vec::new();
        if kind.starts_threads() {
            // `clone3` has its flags in memory, where no filter looks. The stricter answer of two programs counts.
            let only = [(libc::SYS_clone3, Vec::new())].into_iter().collect();
            let missing = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
            programs.push(program::of(&only, missing.into(), allow));
        }
        programs.push(program::of(&merged(kind), allow, kill));
        Filter(programs)
    }

    /// Has the calling thread, and those that it starts, keep to the table from now on.
    pub(crate) fn install(&self) -> Result<(), seccompiler::Error> {
        self.0.iter().try_for_each(|program| seccompiler::apply_filter(program))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entering_a_guest_is_the_first_request_that_a_worker_is_allowed() {
        let calls = merged(Kind::Worker);
        assert_eq!(calls[&libc::SYS_ioctl][0].text, "KVM_RUN");
    }

    #[test]
    fn no_kind_may_run_another_program_or_make_memory_executable() {
        for kind in Kind::ALL {
            let calls = merged(kind);
            for never in [
                libc::SYS_execve,
                libc::SYS_execveat,
                libc::SYS_fork,
                libc::SYS_vfork,
                libc::SYS_ptrace,
                libc::SYS_process_vm_writev,
                libc::SYS_pkey_mprotect,
                libc::SYS_shmat,
                libc::SYS_remap_file_pages,
                libc::SYS_personality,
                libc::SYS_io_uring_setup,
                libc::SYS_bpf,
                libc::SYS_perf_event_open,
                libc::SYS_mount,
                libc::SYS_setuid,
                libc::SYS_kill,
                libc::SYS_unshare,
                libc::SYS_setns,
            ] {
                assert!(!calls.contains_key(&never), "{kind:?}: {never}");
            }
            for memory in [libc::SYS_mmap, libc::SYS_mprotect] {
                assert!(calls[&memory].iter().all(|rule| rule.text == "without PROT_EXEC"), "{kind:?}");
                assert!(!calls[&memory].is_empty(), "{kind:?}");
            }
        }
    }

    /// A thread inherits the filters of the one that starts it.
    #[test]
    fn who_starts_a_thread_may_do_what_it_may() {
        for (starter, started) in [
            (Kind::Channel, Kind::Published),
            (Kind::Channel, Kind::Debug),
            (Kind::Keeper, Kind::Console),
            (Kind::Keeper, Kind::Sender),
        ] {
            assert!(starter.starts_threads(), "{starter:?}");
            let (starter, started) = (merged(starter), merged(started));
            for (number, rules) in started {
                let Some(own) = starter.get(&number) else { panic!("{number} is missing") };
                assert!(
                    own.is_empty() || !rules.is_empty() && rules.iter().all(|rule| own.contains(rule)),
                    "{number}"
                );
            }
        }
    }
}
