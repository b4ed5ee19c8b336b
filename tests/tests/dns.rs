//! The DNS client of the library OS, asked from a guest, against a name server of another make on the host's side.

use std::net::Ipv4Addr;
use std::time::Duration;

use foraker_tests::dns::{Asked, Datagram, Server, a, aaaa, bytes, cname};
use foraker_tests::launch::{Ended, image, launch};
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::RecordType;

/// What an answer that counts says.
const RIGHT: [u8; 4] = [192, 0, 2, 1];
/// What an answer that must be ignored says.
const WRONG: [u8; 4] = [203, 0, 113, 66];

/// Resolves names in a guest, of a subnet of its own, whose name server answers like this.
fn resolve(
    third: u8,
    family: &str,
    names: &[&str],
    answer: impl FnMut(&Asked) -> Vec<Datagram> + Send + 'static,
) -> (Ended, Vec<Asked>) {
    let host = Ipv4Addr::new(10, 98, third, 1);
    let server = Server::start(host, answer);
    let (subnet, host) = (format!("10.98.{third}.0/24"), host.to_string());
    let program = image("probe").display().to_string();
    let mut arguments = vec!["--subnet", &subnet, "--dns", &host, &program, "resolve", family];
    arguments.extend_from_slice(names);
    let ended = launch(arguments).wait(Duration::from_secs(60));
    assert_eq!(ended.status, 0, "{ended}");
    (ended, server.finish())
}

fn server(message: &Message) -> Datagram {
    Datagram::Server(bytes(message))
}

/// Which names were asked for, in this order.
fn names(asked: &[Asked]) -> Vec<String> {
    asked.iter().map(Asked::name).collect()
}

/// What servers say when all is well.
fn plainly(asked: &Asked) -> Vec<Datagram> {
    let name = asked.name();
    let answer = match (name.as_str(), asked.question().query_type()) {
        ("one.example" | "trailing.example", RecordType::A) => asked.answer([a(&name, RIGHT)]),
        ("several.example", RecordType::A) => {
            asked.answer([a(&name, [192, 0, 2, 3]), a(&name, [192, 0, 2, 1]), a(&name, [192, 0, 2, 2])])
        }
        ("one.example", RecordType::AAAA) => asked.answer([aaaa(&name, "2001:db8::1")]),
        ("several.example", RecordType::AAAA) => {
            asked.answer([aaaa(&name, "2001:db8::2"), aaaa(&name, "2001:db8::1")])
        }
        ("alias.example", kind) => {
            let target = "target.with-a-longer-name.example";
            let address = match kind {
                RecordType::A => a(target, RIGHT),
                _ => aaaa(target, "2001:db8::1"),
            };
            asked.answer([
                cname("alias.example", "middle.example"),
                cname("middle.example", target),
                address,
                // Of another name, so it is no answer.
                a("bystander.example", WRONG),
            ])
        }
        // The name exists, but has no address of this family.
        ("empty.example", _) => asked.answer([]),
        ("failing.example", _) => asked.refusal(ResponseCode::ServFail),
        ("refused.example", _) => asked.refusal(ResponseCode::Refused),
        _ => asked.refusal(ResponseCode::NXDomain),
    };
    vec![server(&answer)]
}

#[test]
fn names_have_ipv4_addresses() {
    let asked_for = [
        "one.example",
        "several.example",
        "alias.example",
        "missing.example",
        "empty.example",
        "failing.example",
        "refused.example",
        "trailing.example.",
        "192.0.2.77",
    ];
    let (ended, asked) = resolve(21, "4", &asked_for, plainly);
    let expected = [
        "one.example: 192.0.2.1",
        "several.example: 192.0.2.3 192.0.2.1 192.0.2.2",
        "alias.example: 192.0.2.1",
        "missing.example: no such name",
        "empty.example: no such name",
        "failing.example: no such name",
        "refused.example: no such name",
        "trailing.example.: 192.0.2.1",
        "192.0.2.77: 192.0.2.77",
    ];
    assert_eq!(ended.stdout.lines().collect::<Vec<_>>(), expected, "{ended}");
    for one in &asked {
        assert_eq!(one.question().query_type(), RecordType::A);
        let metadata = &one.message.metadata;
        assert!(metadata.recursion_desired && metadata.message_type == MessageType::Query, "{metadata:?}");
    }
    let mut seen = names(&asked);
    // A slow machine may ask twice.
    seen.dedup();
    let sent: Vec<_> = asked_for[..8].iter().map(|name| name.trim_end_matches('.')).collect();
    assert_eq!(seen, sent, "an address in text is not asked for");
}

#[test]
fn names_have_ipv6_addresses() {
    let (ended, asked) =
        resolve(22, "6", &["one.example", "several.example", "alias.example", "missing.example"], plainly);
    let expected = [
        "one.example: 2001:db8::1",
        "several.example: 2001:db8::2 2001:db8::1",
        "alias.example: 2001:db8::1",
        "missing.example: no such name",
    ];
    assert_eq!(ended.stdout.lines().collect::<Vec<_>>(), expected, "{ended}");
    assert!(asked.iter().all(|one| one.question().query_type() == RecordType::AAAA));
}

#[test]
fn lost_packets_are_asked_for_again() {
    let (ended, asked) =
        resolve(23, "4", &["late.example", "silent.example"], |asked| match asked.name().as_str() {
            "late.example" if asked.before > 0 => vec![server(&asked.answer([a("late.example", RIGHT)]))],
            _ => Vec::new(),
        });
    let expected = ["late.example: 192.0.2.1", "silent.example: timed out"];
    assert_eq!(ended.stdout.lines().collect::<Vec<_>>(), expected, "{ended}");
    let seen = names(&asked);
    let count = |name: &str| seen.iter().filter(|&seen| seen == name).count();
    assert!(count("late.example") >= 2 && count("silent.example") >= 2, "{seen:?}");
    let ids: Vec<_> =
        asked.iter().filter(|a| a.name() == "silent.example").map(|a| a.message.metadata.id).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "the same question: {ids:?}");
}

#[test]
fn strangers_answers_are_ignored() {
    let asked_for = ["id.example", "port.example", "question.example", "name.example", "kind.example"];
    let (ended, _) = resolve(24, "4", &asked_for, |asked| {
        let name = asked.name();
        let mut wrong = asked.answer([a(&name, WRONG)]);
        let wrong = match name.as_str() {
            "id.example" => {
                wrong.metadata.id = wrong.metadata.id.wrapping_add(1);
                server(&wrong)
            }
            "port.example" => Datagram::Elsewhere(bytes(&wrong)),
            // No answer, but a question that has records with it.
            "question.example" => {
                wrong.metadata.message_type = MessageType::Query;
                server(&wrong)
            }
            "name.example" => {
                wrong.queries[0].set_name(foraker_tests::dns::name("other.example"));
                server(&wrong)
            }
            _ => {
                wrong.queries[0].set_query_type(RecordType::AAAA);
                server(&wrong)
            }
        };
        // The right one is there at once, so that what is ignored is not only outrun.
        vec![wrong, server(&asked.answer([a(&name, RIGHT)]))]
    });
    let expected = asked_for.map(|name| format!("{name}: 192.0.2.1"));
    assert_eq!(ended.stdout.lines().collect::<Vec<_>>(), expected, "{ended}");
}

/// The client has no TCP to ask again with: it takes what a truncated answer holds.
#[test]
fn truncated_answers_are_taken_as_far_as_they_go() {
    let asked_for = ["some.example", "none.example"];
    let (ended, _) = resolve(25, "4", &asked_for, |asked| {
        let mut answer = asked.answer([]);
        answer.metadata.truncation = true;
        if asked.name() == "some.example" {
            answer.add_answers([a("some.example", RIGHT), a("some.example", [192, 0, 2, 2])]);
        }
        vec![server(&answer)]
    });
    let expected = ["some.example: 192.0.2.1 192.0.2.2", "none.example: no such name"];
    assert_eq!(ended.stdout.lines().collect::<Vec<_>>(), expected, "{ended}");
}

#[test]
fn malformed_answers_are_ignored() {
    /// Bytes of a message before its first question.
    const HEADER: usize = 12;
    let asked_for = ["nothing.example", "short.example", "cut.example", "counts.example", "loop.example"];
    let (ended, _) = resolve(26, "4", &asked_for, |asked| {
        let name = asked.name();
        let whole = bytes(&asked.answer([a(&name, WRONG)]));
        let right = server(&asked.answer([a(&name, RIGHT)]));
        // The record: a pointer to the name, type, class, time to live, length, four bytes.
        let at = whole.len() - 16;
        let wrong: Vec<Vec<u8>> = match name.as_str() {
            "nothing.example" => vec![Vec::new(), vec![0], vec![0xff; 512], vec![0; HEADER]],
            // No byte of a header may be missing, nor of the question.
            "short.example" => (1..at).map(|length| whole[..length].to_vec()).collect(),
            "cut.example" => (at..whole.len()).map(|length| whole[..length].to_vec()).collect(),
            "counts.example" => {
                let with = |at: usize, value: u8| {
                    let mut changed = whole.clone();
                    changed[at] = value;
                    changed
                };
                // More questions, no question, more answers than there are, a length beyond the end.
                vec![with(5, 2), with(5, 0), with(7, 2), with(6, 0xff), with(whole.len() - 5, 5)]
            }
            _ => {
                let pointer = |bytes: &mut Vec<u8>, from: usize, to: usize| {
                    let pointer = 0xc000 | u16::try_from(to).expect("a place in a message");
                    bytes[from..from + 2].copy_from_slice(&pointer.to_be_bytes());
                };
                let [mut own, mut two, mut far] = [whole.clone(), whole.clone(), whole];
                pointer(&mut own, at, at);
                // The address stands behind name, type, class, time to live and length.
                pointer(&mut two, at, at + 12);
                pointer(&mut two, at + 12, at);
                pointer(&mut far, at, 0x3fff);
                vec![own, two, far]
            }
        };
        wrong.into_iter().map(Datagram::Server).chain([right]).collect()
    });
    let expected = asked_for.map(|name| format!("{name}: 192.0.2.1"));
    assert_eq!(ended.stdout.lines().collect::<Vec<_>>(), expected, "{ended}");
}
