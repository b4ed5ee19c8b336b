//! A table as a program for the kernel's filters (classic BPF, `linux/filter.h`), as short as it can be.
//!
//! When a filter is installed, the kernel runs its program once for every number of a call, to see which it allows whatever the arguments are; that takes most
//! of the time. So numbers are searched by halves, and all ends are shared: a third of what `seccompiler` makes of the same table, and a tenth of the steps. Its
//! programs are what these are tested against.
//!
//! Jumps go forward only, so the program is put together from its end: whatever is jumped to is there already, and has a place counted from the end.

use std::collections::BTreeMap;

use seccompiler::sock_filter;

use crate::call::{Condition, LOWER, Rule, Value};

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

/// `struct seccomp_data`: the number, the interface, the instruction, six arguments.
const NUMBER: u32 = 0;
const INTERFACE: u32 = 4;
const ARGUMENTS: u32 = 16;
/// The 64-bit interface of x86-64.
const X86_64: u32 = 0xc000_003e;

/// So many numbers are compared one by one.
const FEW: usize = 3;
/// Farthest that a jump with a condition reaches.
const FAR: usize = 255;

/// The program so far, last instruction first.
struct Assembly(Vec<sock_filter>);

/// A place in it, counted from the end.
type Place = usize;

impl Assembly {
    fn push(&mut self, code: u16, k: u32, jt: u8, jf: u8) -> Place {
        self.0.push(sock_filter { code, jt, jf, k });
        self.0.len() - 1
    }

    /// A place within reach of the next instruction but one: this one, or a jump to it.
    fn near(&mut self, place: Place) -> Place {
        let distance = self.0.len() - 1 - place;
        if distance < FAR - 1 {
            return place;
        }
        self.push(JUMP, u32::try_from(distance).unwrap_or(u32::MAX), 0, 0)
    }

    /// Compares, and goes to one place or the other.
    fn branch(&mut self, code: u16, k: u32, yes: Place, no: Place) -> Place {
        let no = self.near(no);
        let yes = self.near(yes);
        let distance = |place| u8::try_from(self.0.len() - 1 - place).unwrap_or(u8::MAX);
        let (yes, no) = (distance(yes), distance(no));
        self.push(code, k, yes, no)
    }

    /// Compares bits of half an argument.
    fn half(&mut self, offset: u32, mask: u32, value: u32, yes: Place, no: Place) -> Place {
        self.branch(IF_EQUAL, value, yes, no);
        if mask != u32::MAX {
            self.push(AND, mask, 0, 0);
        }
        self.push(LOAD, offset, 0, 0)
    }

    fn condition(&mut self, condition: &Condition, yes: Place, no: Place) -> Place {
        let (offset, value) = (offset(condition), value(condition));
        let (upper, lower) = halves(condition.mask);
        let (value_upper, value_lower) = halves(value);
        let lower = self.half(offset, lower, value_lower, yes, no);
        if upper == 0 { lower } else { self.half(offset + 4, upper, value_upper, lower, no) }
    }

    /// One of the rules holds: to `yes`.
    fn rules(&mut self, rules: &[Rule], yes: Place, no: Place) -> Place {
        let mut next = no;
        if let Some((first, mask)) = same_bits(rules) {
            for condition in rules.iter().rev().filter_map(|rule| rule.conditions.first()) {
                let (_, value) = halves(value(condition));
                next = self.branch(IF_EQUAL, value, yes, next);
            }
            if mask != u32::MAX {
                self.push(AND, mask, 0, 0);
            }
            return self.push(LOAD, first, 0, 0);
        }
        for rule in rules.iter().rev() {
            let mut holds = yes;
            for condition in rule.conditions.iter().rev() {
                holds = self.condition(condition, holds, next);
            }
            next = holds;
        }
        next
    }

    /// Finds a number among these, sorted; else to `no`.
    fn search(&mut self, numbers: &[(u32, Place)], no: Place) -> Place {
        if numbers.len() <= FEW {
            return numbers
                .iter()
                .rev()
                .fold(no, |next, (number, place)| self.branch(IF_EQUAL, *number, *place, next));
        }
        let (below, from) = numbers.split_at(numbers.len() / 2);
        let middle = from.first().map_or(0, |(number, _)| *number);
        let from = self.search(from, no);
        let below = self.search(below, no);
        self.branch(IF_AT_LEAST, middle, from, below)
    }
}

fn offset(condition: &Condition) -> u32 {
    ARGUMENTS + 8 * u32::from(condition.argument)
}

fn value(condition: &Condition) -> u64 {
    match condition.value {
        Value::Number(number) => number,
        Value::OwnProcess => u64::from(std::process::id()),
    }
}

/// The upper and the lower 32 bits.
fn halves(value: u64) -> (u32, u32) {
    let lower = u32::try_from(value & LOWER).unwrap_or(0);
    (u32::try_from(value >> 32).unwrap_or(0), lower)
}

/// Where and which bits, if all rules have one condition, on the same.
fn same_bits(rules: &[Rule]) -> Option<(u32, u32)> {
    let bits = |rule: &Rule| match rule.conditions {
        [one] if one.mask <= LOWER => Some((offset(one), halves(one.mask).1)),
        _ => None,
    };
    let first = bits(rules.first()?)?;
    rules.iter().all(|rule| bits(rule) == Some(first)).then_some(first)
}

/// A program that gives one answer to what is in the table, and the other to everything else. Calls without rules are always in it.
pub(crate) fn of(calls: &BTreeMap<i64, Vec<Rule>>, inside: u32, outside: u32) -> Vec<sock_filter> {
    let mut assembly = Assembly(Vec::new());
    let outside = assembly.push(RETURN, outside, 0, 0);
    let inside = assembly.push(RETURN, inside, 0, 0);
    let numbers: Vec<_> = calls
        .iter()
        .filter_map(|(number, rules)| {
            let place = if rules.is_empty() { inside } else { assembly.rules(rules, inside, outside) };
            Some((u32::try_from(*number).ok()?, place))
        })
        .collect();
    let first = assembly.search(&numbers, outside);
    if first + 1 != assembly.0.len() {
        // Nothing to look for: past what stands between.
        assembly.push(JUMP, u32::try_from(assembly.0.len() - 1 - first).unwrap_or(0), 0, 0);
    }
    let loaded = assembly.push(LOAD, NUMBER, 0, 0);
    assembly.branch(IF_EQUAL, X86_64, loaded, outside);
    assembly.push(LOAD, INTERFACE, 0, 0);
    assembly.0.reverse();
    assembly.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::merged;
    use crate::kind::Kind;
    use proptest::prelude::*;
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch,
    };

    const INSIDE: u32 = 0x7fff_0000;
    const OUTSIDE: u32 = 0x8000_0000;

    /// The kernel's view of a call.
    #[derive(Debug)]
    struct Data {
        number: u32,
        interface: u32,
        arguments: [u64; 6],
    }

    impl Data {
        fn word(&self, offset: u32) -> u32 {
            let argument = |at: u32| halves(self.arguments[(at / 8) as usize]);
            match offset {
                NUMBER => self.number,
                INTERFACE => self.interface,
                _ if offset.is_multiple_of(8) => argument(offset - ARGUMENTS).1,
                _ => argument(offset - ARGUMENTS).0,
            }
        }
    }

    /// Runs a program. Returns its answer and its steps.
    fn run(program: &[sock_filter], data: &Data) -> (u32, usize) {
        let (mut at, mut a) = (0, 0);
        for step in 1.. {
            let i = &program[at];
            at += 1;
            let jump = |yes: bool| usize::from(if yes { i.jt } else { i.jf });
            match i.code {
                LOAD => a = data.word(i.k),
                AND => a &= i.k,
                JUMP => at += i.k as usize,
                IF_EQUAL => at += jump(a == i.k),
                IF_AT_LEAST => at += jump(a >= i.k),
                0x25 => at += jump(a > i.k),
                RETURN => return (i.k, step),
                other => panic!("instruction {other:#x}"),
            }
        }
        unreachable!()
    }

    /// What `seccompiler` makes of the same table.
    fn reference(calls: &BTreeMap<i64, Vec<Rule>>) -> BpfProgram {
        let condition = |c: &Condition| {
            let length = if c.mask > LOWER { SeccompCmpArgLen::Qword } else { SeccompCmpArgLen::Dword };
            SeccompCondition::new(c.argument, length, SeccompCmpOp::MaskedEq(c.mask), value(c)).unwrap()
        };
        let rule = |rule: &Rule| SeccompRule::new(rule.conditions.iter().map(condition).collect()).unwrap();
        let rules = calls.iter().map(|(number, rules)| (*number, rules.iter().map(rule).collect())).collect();
        let (outside, inside) = (SeccompAction::KillProcess, SeccompAction::Allow);
        SeccompFilter::new(rules, outside, inside, TargetArch::x86_64).unwrap().try_into().unwrap()
    }

    /// A number that is worth trying as an argument: one that a rule has, or near it.
    fn argument(calls: &BTreeMap<i64, Vec<Rule>>) -> BoxedStrategy<u64> {
        let conditions = calls.values().flatten().flat_map(|rule| rule.conditions);
        let all: Vec<u64> = conditions.map(value).chain([0, u64::MAX, 1 << 32]).collect();
        let near = (prop::sample::select(all), 0u64..3, any::<bool>())
            .prop_map(|(value, more, high)| value.wrapping_add(more) | if high { 1 << 40 } else { 0 });
        prop_oneof![4 => near, 1 => any::<u64>()].boxed()
    }

    fn data(kind: Kind) -> BoxedStrategy<Data> {
        let calls = merged(kind);
        let known: Vec<u32> = calls.keys().map(|number| u32::try_from(*number).unwrap()).collect();
        let number = prop_oneof![6 => prop::sample::select(known), 3 => 0u32..500, 1 => any::<u32>()];
        let interface = prop_oneof![20 => Just(X86_64), 1 => any::<u32>()];
        (number, interface, prop::array::uniform6(argument(&calls)))
            .prop_map(|(number, interface, arguments)| Data { number, interface, arguments })
            .boxed()
    }

    #[test]
    fn programs_answer_as_seccompilers_do() {
        for kind in Kind::ALL {
            let calls = merged(kind);
            let (own, theirs) = (of(&calls, INSIDE, OUTSIDE), reference(&calls));
            assert!(own.len() * 2 < theirs.len(), "{kind:?}: {} and {}", own.len(), theirs.len());
            let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(4000));
            runner
                .run(&data(kind), |data| {
                    prop_assert_eq!(run(&own, &data).0, run(&theirs, &data).0, "{:?} {}", kind, data.number);
                    Ok(())
                })
                .unwrap_or_else(|e| panic!("{kind:?}: {e}"));
        }
    }

    #[test]
    fn entering_a_guest_takes_a_dozen_steps() {
        let program = of(&merged(Kind::Worker), INSIDE, OUTSIDE);
        let number = u32::try_from(libc::SYS_ioctl).unwrap();
        let data = Data { number, interface: X86_64, arguments: [7, 0xae80, 0, 0, 0, 0] };
        let (answer, steps) = run(&program, &data);
        assert_eq!(answer, INSIDE);
        assert!(steps <= 14, "{steps} steps");
    }

    #[test]
    fn nothing_is_in_an_empty_table() {
        let program = of(&BTreeMap::new(), INSIDE, OUTSIDE);
        let data = Data { number: 0, interface: X86_64, arguments: [0; 6] };
        assert_eq!(run(&program, &data).0, OUTSIDE);
    }
}
