//! The registry: what must survive the daemon, in one SQLite file.
//!
//! One thread owns the database. Whoever changes something says so while it holds the supervisor's state, so that the changes stand in the
//! registry in the order in which they happened, and waits for the [`Ticket`] after it has let the state go: what is acknowledged is
//! written. Changes that wait are committed together (group commit), so that ten thousand of them cost one transaction.
//!
//! The journal is a write-ahead log, synchronous at checkpoints only: a commit is in the kernel's hands when it returns and survives the
//! death of the process at any moment; after a loss of power the last moments may be missing, and the registry is consistent.
//! (<https://www.sqlite.org/wal.html>, "Performance considerations".)

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use foraker_api::{GatekeeperSettings, GuestSpec, OwnerSettings};
use foraker_confine::Kind;
use rusqlite::{Connection, OptionalExtension, params};
use thiserror::Error;
use tokio::sync::oneshot;

use crate::background;
use crate::channel::Ended;

/// The version of the tables.
const SCHEMA: i64 = 1;
/// Most changes of one transaction: whoever waits for the first does not wait for ever.
const MOST_AT_ONCE: usize = 4096;
/// How often the log is moved into the database, unless it is quiet.
const CHECKPOINT: Duration = Duration::from_secs(5);
/// Events have numbers that begin anew, this much greater, with each daemon.
pub(crate) const EVENTS_OF_A_DAEMON: u64 = 1 << 32;

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS specs (id INTEGER PRIMARY KEY, spec TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS guests (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, spec INTEGER NOT NULL, digest TEXT NOT NULL,
    created_ms INTEGER NOT NULL, since_ms INTEGER NOT NULL, restarts INTEGER NOT NULL,
    begun INTEGER NOT NULL, unwanted INTEGER NOT NULL, cell INTEGER, ipv4 TEXT, ended TEXT);
CREATE TABLE IF NOT EXISTS owners (name TEXT PRIMARY KEY, settings TEXT NOT NULL, network INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS networks (name TEXT PRIMARY KEY, owner TEXT NOT NULL, number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS images (
    digest TEXT PRIMARY KEY, size INTEGER NOT NULL, created_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS names (name TEXT PRIMARY KEY, digest TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS cells (number INTEGER PRIMARY KEY, owner TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS gatekeeper (only INTEGER PRIMARY KEY CHECK (only = 0), settings TEXT NOT NULL);
";

/// Why the registry cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file system says no.
    #[error("the state directory {}: {source}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody else uses it.
    #[error("a supervisor runs already with the state directory {}: stop it, or name another --state", .0.display())]
    InUse(PathBuf),
    /// The database says no.
    #[error("the registry {}: {source}", path.display())]
    Database {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// It was written by another version.
    #[error("the registry {} has form {found}, this program reads form {SCHEMA}: use the program that wrote it", path.display())]
    Form {
        /// Which.
        path: PathBuf,
        /// The form found.
        found: i64,
    },
}

/// A guest as it stands in the registry.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StoredGuest {
    pub(crate) id: u64,
    pub(crate) name: String,
    /// Number of its spec.
    pub(crate) spec: u64,
    pub(crate) digest: String,
    pub(crate) created_ms: u64,
    pub(crate) progress: Progress,
}

/// What changes in a guest's life.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Progress {
    pub(crate) since_ms: u64,
    pub(crate) restarts: u32,
    /// It has run since it was asked for or started.
    pub(crate) begun: bool,
    /// Somebody asked it to end.
    pub(crate) unwanted: bool,
    pub(crate) cell: Option<usize>,
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// How it ended, if it has and does not come back by itself.
    pub(crate) ended: Option<Ended>,
}

/// An owner as it stands in the registry.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StoredOwner {
    pub(crate) settings: OwnerSettings,
    /// The number of its own network.
    pub(crate) network: u32,
}

/// A network as it stands in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredNetwork {
    pub(crate) owner: String,
    pub(crate) number: u32,
}

/// An image as it stands in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredImage {
    pub(crate) digest: String,
    pub(crate) size: u64,
    pub(crate) created_ms: u64,
}

/// A change.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Spec(u64, Arc<GuestSpec>),
    Guests(Vec<StoredGuest>),
    Progress(u64, Progress),
    Forget(Vec<u64>),
    Owner(String, StoredOwner),
    ForgetOwner(String),
    Network(String, StoredNetwork),
    ForgetNetwork(String),
    /// Whose a cell is, if it is somebody's alone.
    Cell(usize, Option<String>),
    /// What is settled for all guests together, if it is.
    Gatekeeper(Option<GatekeeperSettings>),
    Image(StoredImage),
    ForgetImage(String),
    Name(String, String),
}

/// Everything that stands in the registry.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Contents {
    pub(crate) specs: HashMap<u64, Arc<GuestSpec>>,
    pub(crate) guests: Vec<StoredGuest>,
    pub(crate) owners: BTreeMap<String, StoredOwner>,
    pub(crate) networks: BTreeMap<String, StoredNetwork>,
    pub(crate) images: Vec<StoredImage>,
    pub(crate) names: BTreeMap<String, String>,
    /// Owners of cells.
    pub(crate) cells: BTreeMap<usize, String>,
    pub(crate) gatekeeper: Option<GatekeeperSettings>,
    /// The last id of a guest that was ever given.
    pub(crate) last_id: u64,
    /// How many daemons have used it, this one included.
    pub(crate) daemons: u64,
}

enum Message {
    Change(Vec<Change>, Option<oneshot::Sender<bool>>),
}

/// When changes are written.
#[derive(Debug)]
pub struct Ticket(Option<oneshot::Receiver<bool>>);

impl Ticket {
    /// The same for who is no asynchronous task.
    pub fn wait(self) -> bool {
        self.0.is_none_or(|receiver| receiver.blocking_recv().unwrap_or(false))
    }

    /// Waits until they are. False when they cannot be: the registry is broken, and the supervisor says so.
    pub async fn written(self) -> bool {
        match self.0 {
            Some(receiver) => receiver.await.unwrap_or(false),
            None => true,
        }
    }
}

/// The way to the registry.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    to: Option<Sender<Message>>,
}

impl Store {
    /// Nowhere: for tests of what needs none.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Store {
        Store { to: None }
    }

    /// Opens the registry in a directory, and reads it. The thread ends with the last copy of the value.
    pub(crate) fn open(
        directory: &Path,
    ) -> Result<(Store, Contents, std::thread::JoinHandle<()>), StoreError> {
        let path = directory.join("registry.db");
        let failed = |source| StoreError::Database { path: path.clone(), source };
        let mut database = Connection::open(&path).map_err(failed)?;
        prepare(&database).map_err(failed)?;
        let found: i64 =
            database.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
        if found != 0 && found != SCHEMA {
            return Err(StoreError::Form { path, found });
        }
        // One that was written before a table came to be has it from now on.
        database.execute_batch(TABLES).map_err(failed)?;
        database.pragma_update(None, "user_version", SCHEMA).map_err(failed)?;
        let contents = read(&mut database).map_err(failed)?;
        let (to, from) = channel();
        let thread = std::thread::Builder::new()
            .name("registry".to_owned())
            .spawn(move || {
                background::enter(Kind::Store);
                keep(database, &from);
            })
            .map_err(|source| StoreError::Directory { path: directory.to_path_buf(), source })?;
        Ok((Store { to: Some(to) }, contents, thread))
    }

    /// Has changes written, sooner or later: nobody has been told of them.
    pub(crate) fn note(&self, changes: Vec<Change>) {
        self.send(changes, None);
    }

    /// Has changes written; the ticket tells when they are.
    pub(crate) fn write(&self, changes: Vec<Change>) -> Ticket {
        if self.to.is_none() {
            return Ticket(None);
        }
        let (done, receiver) = oneshot::channel();
        self.send(changes, Some(done));
        Ticket(Some(receiver))
    }

    fn send(&self, changes: Vec<Change>, done: Option<oneshot::Sender<bool>>) {
        if let Some(to) = &self.to {
            // Its end was said by the thread itself; whoever waits for a ticket hears of it.
            let _ = to.send(Message::Change(changes, done));
        }
    }
}

/// Settings of each connection.
pub(crate) fn prepare(database: &Connection) -> rusqlite::Result<()> {
    database.pragma_update(None, "journal_mode", "wal")?;
    database.pragma_update(None, "synchronous", "normal")?;
    // The thread does it when it has nothing else to do.
    database.pragma_update(None, "wal_autocheckpoint", 0)?;
    // Nothing is written anywhere else.
    database.pragma_update(None, "temp_store", "memory")?;
    database.set_prepared_statement_cache_capacity(32);
    Ok(())
}

fn read(database: &mut Connection) -> rusqlite::Result<Contents> {
    let transaction = database.transaction()?;
    let contents = read_within(&transaction)?;
    transaction.commit()?;
    Ok(contents)
}

fn read_within(transaction: &Connection) -> rusqlite::Result<Contents> {
    // Of guests that are no more.
    transaction.execute("DELETE FROM specs WHERE id NOT IN (SELECT spec FROM guests)", [])?;
    let number = |name: &str| -> rusqlite::Result<u64> {
        let found = transaction
            .query_row("SELECT value FROM numbers WHERE name = ?1", [name], |row| row.get::<_, i64>(0))
            .optional()?;
        Ok(found.map_or(0, i64::cast_unsigned))
    };
    let daemons = number("daemons")? + 1;
    let mut contents = Contents { daemons, last_id: number("last_id")?, ..Contents::default() };
    transaction.execute("INSERT OR REPLACE INTO numbers VALUES ('daemons', ?1)", [daemons.cast_signed()])?;
    let mut statement = transaction.prepare("SELECT id, spec FROM specs")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let spec: GuestSpec = from_json(&row.get::<_, String>(1)?)?;
        contents.specs.insert(row.get::<_, i64>(0)?.cast_unsigned(), Arc::new(spec));
    }
    let mut statement = transaction.prepare(
        "SELECT id, name, spec, digest, created_ms, since_ms, restarts, begun, unwanted, cell, ipv4, ended FROM guests ORDER BY id",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let whole = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
        let ended: Option<String> = row.get(11)?;
        let progress = Progress {
            since_ms: whole(5)?,
            restarts: row.get(6)?,
            begun: row.get(7)?,
            unwanted: row.get(8)?,
            cell: row.get::<_, Option<i64>>(9)?.and_then(|cell| usize::try_from(cell).ok()),
            ipv4: row.get::<_, Option<String>>(10)?.and_then(|text| text.parse().ok()),
            ended: ended.map(|text| from_json(&text)).transpose()?,
        };
        contents.guests.push(StoredGuest {
            id: whole(0)?,
            name: row.get(1)?,
            spec: whole(2)?,
            digest: row.get(3)?,
            created_ms: whole(4)?,
            progress,
        });
    }
    let mut statement = transaction.prepare("SELECT name, settings, network FROM owners")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let owner = StoredOwner { settings: from_json(&row.get::<_, String>(1)?)?, network: row.get(2)? };
        contents.owners.insert(row.get(0)?, owner);
    }
    let mut statement = transaction.prepare("SELECT name, owner, number FROM networks")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        contents.networks.insert(row.get(0)?, StoredNetwork { owner: row.get(1)?, number: row.get(2)? });
    }
    let mut statement =
        transaction.prepare("SELECT digest, size, created_ms FROM images ORDER BY created_ms")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let whole = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
        contents.images.push(StoredImage { digest: row.get(0)?, size: whole(1)?, created_ms: whole(2)? });
    }
    let mut statement = transaction.prepare("SELECT number, owner FROM cells")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if let Ok(number) = usize::try_from(row.get::<_, i64>(0)?) {
            contents.cells.insert(number, row.get(1)?);
        }
    }
    let gatekeeper: Option<String> =
        transaction.query_row("SELECT settings FROM gatekeeper", [], |row| row.get(0)).optional()?;
    contents.gatekeeper = gatekeeper.map(|text| from_json(&text)).transpose()?;
    let mut statement = transaction.prepare("SELECT name, digest FROM names")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        contents.names.insert(row.get(0)?, row.get(1)?);
    }
    Ok(contents)
}

fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e)))
}

fn to_json(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

/// Writes what comes until nobody is left who could say something.
fn keep(mut database: Connection, from: &Receiver<Message>) {
    let (mut dirty, mut complained) = (false, false);
    loop {
        let first = if dirty {
            match from.recv_timeout(CHECKPOINT) {
                Ok(message) => message,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                    dirty = checkpoint(&database).is_err();
                    continue;
                }
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            }
        } else {
            match from.recv() {
                Ok(message) => message,
                Err(_) => break,
            }
        };
        let mut all = vec![first];
        all.extend(from.try_iter().take(MOST_AT_ONCE));
        let (mut changes, mut waiting) = (Vec::new(), Vec::new());
        for Message::Change(more, done) in all {
            changes.extend(more);
            waiting.extend(done);
        }
        let written = write(&mut database, changes);
        if let Err(e) = &written
            && !complained
        {
            // Once: it is not the guests' doing, but they could repeat it.
            log::error!("the registry cannot be written, so that changes will not outlive this daemon: {e}");
        }
        complained = written.is_err();
        dirty = true;
        for done in waiting {
            // Who waited may have gone.
            let _ = done.send(written.is_ok());
        }
    }
    if let Err(e) = checkpoint(&database) {
        log::warn!("the registry's log stays beside it: {e}");
    }
}

fn checkpoint(database: &Connection) -> rusqlite::Result<()> {
    database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

fn write(database: &mut Connection, changes: Vec<Change>) -> rusqlite::Result<()> {
    let transaction = database.transaction()?;
    for change in changes {
        apply(&transaction, change)?;
    }
    transaction.commit()
}

fn apply(to: &Connection, change: Change) -> rusqlite::Result<()> {
    match change {
        Change::Spec(id, spec) => {
            to.prepare_cached("INSERT OR REPLACE INTO specs VALUES (?1, ?2)")?
                .execute(params![id.cast_signed(), to_json(&*spec)?])?;
        }
        Change::Guests(guests) => {
            let last = guests.iter().map(|g| g.id).max().unwrap_or(0);
            let mut insert = to.prepare_cached(
                "INSERT OR REPLACE INTO guests VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            )?;
            for g in guests {
                let Progress { since_ms, restarts, begun, unwanted, cell, ipv4, ended } = g.progress;
                insert.execute(params![
                    g.id.cast_signed(),
                    g.name,
                    g.spec.cast_signed(),
                    g.digest,
                    g.created_ms.cast_signed(),
                    since_ms.cast_signed(),
                    restarts,
                    begun,
                    unwanted,
                    cell.and_then(|cell| i64::try_from(cell).ok()),
                    ipv4.map(|address| address.to_string()),
                    ended.map(|ended| to_json(&ended)).transpose()?,
                ])?;
            }
            // Ids are never given twice, even if the last guest is forgotten.
            to.prepare_cached(
                "INSERT INTO numbers VALUES ('last_id', ?1) ON CONFLICT (name) DO UPDATE SET value = MAX(value, ?1)",
            )?
            .execute([last.cast_signed()])?;
        }
        Change::Progress(id, Progress { since_ms, restarts, begun, unwanted, cell, ipv4, ended }) => {
            to.prepare_cached(
                "UPDATE guests SET since_ms = ?2, restarts = ?3, begun = ?4, unwanted = ?5, cell = ?6, ipv4 = ?7, ended = ?8 WHERE id = ?1",
            )?
            .execute(params![
                id.cast_signed(),
                since_ms.cast_signed(),
                restarts,
                begun,
                unwanted,
                cell.and_then(|cell| i64::try_from(cell).ok()),
                ipv4.map(|address| address.to_string()),
                ended.map(|ended| to_json(&ended)).transpose()?,
            ])?;
        }
        Change::Forget(ids) => {
            let mut delete = to.prepare_cached("DELETE FROM guests WHERE id = ?1")?;
            for id in ids {
                delete.execute([id.cast_signed()])?;
            }
        }
        Change::Owner(name, owner) => {
            to.prepare_cached("INSERT OR REPLACE INTO owners VALUES (?1, ?2, ?3)")?.execute(params![
                name,
                to_json(&owner.settings)?,
                owner.network
            ])?;
        }
        Change::ForgetOwner(name) => {
            to.prepare_cached("DELETE FROM owners WHERE name = ?1")?.execute([name])?;
        }
        Change::Network(name, network) => {
            to.prepare_cached("INSERT OR REPLACE INTO networks VALUES (?1, ?2, ?3)")?.execute(params![
                name,
                network.owner,
                network.number
            ])?;
        }
        Change::ForgetNetwork(name) => {
            to.prepare_cached("DELETE FROM networks WHERE name = ?1")?.execute([name])?;
        }
        Change::Cell(number, owner) => {
            let number = i64::try_from(number).unwrap_or(i64::MAX);
            match owner {
                Some(owner) => to
                    .prepare_cached("INSERT OR REPLACE INTO cells VALUES (?1, ?2)")?
                    .execute(params![number, owner])?,
                None => to.prepare_cached("DELETE FROM cells WHERE number = ?1")?.execute([number])?,
            };
        }
        Change::Gatekeeper(settings) => {
            match settings {
                Some(settings) => to
                    .prepare_cached("INSERT OR REPLACE INTO gatekeeper VALUES (0, ?1)")?
                    .execute([to_json(&settings)?])?,
                None => to.prepare_cached("DELETE FROM gatekeeper")?.execute([])?,
            };
        }
        Change::Image(image) => {
            to.prepare_cached("INSERT OR REPLACE INTO images VALUES (?1, ?2, ?3)")?.execute(params![
                image.digest,
                image.size.cast_signed(),
                image.created_ms.cast_signed()
            ])?;
        }
        Change::ForgetImage(digest) => {
            to.prepare_cached("DELETE FROM images WHERE digest = ?1")?.execute([&digest])?;
            to.prepare_cached("DELETE FROM names WHERE digest = ?1")?.execute([&digest])?;
        }
        Change::Name(name, digest) => {
            to.prepare_cached("INSERT OR REPLACE INTO names VALUES (?1, ?2)")?.execute([name, digest])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(id: u64) -> StoredGuest {
        let progress = Progress { since_ms: 7, ..Progress::default() };
        StoredGuest { id, name: format!("g-{id}"), spec: 1, digest: "d".into(), created_ms: 5, progress }
    }

    #[test]
    fn what_was_written_is_there_again() {
        let directory = tempfile::tempdir().unwrap();
        let (store, contents, thread) = Store::open(directory.path()).unwrap();
        assert_eq!(contents, Contents { daemons: 1, ..Contents::default() });
        let spec = Arc::new(GuestSpec::of("image"));
        store.note(vec![
            Change::Spec(1, Arc::clone(&spec)),
            Change::Guests(vec![guest(1), guest(2), guest(3)]),
        ]);
        let ended = Progress {
            restarts: 2,
            begun: true,
            unwanted: true,
            cell: Some(4),
            ipv4: Some(Ipv4Addr::new(10, 1, 2, 3)),
            ended: Some(Ended::Exit(3)),
            since_ms: 9,
        };
        store.note(vec![Change::Progress(2, ended.clone()), Change::Forget(vec![3])]);
        let owner = StoredOwner { settings: OwnerSettings::default(), network: 3 };
        let budget = foraker_api::Amounts { memory: Some(1 << 30), ..foraker_api::Amounts::default() };
        let gatekeeper = GatekeeperSettings { budget, most_waiting: 7, discipline: Default::default() };
        store.note(vec![
            Change::Owner("me".into(), owner.clone()),
            Change::Network("blue".into(), StoredNetwork { owner: "me".into(), number: 4 }),
            Change::Image(StoredImage { digest: "d".into(), size: 9, created_ms: 1 }),
            Change::Image(StoredImage { digest: "gone".into(), size: 9, created_ms: 1 }),
            Change::Name("image".into(), "d".into()),
            Change::Name("old".into(), "gone".into()),
            Change::ForgetImage("gone".into()),
            Change::Cell(3, Some("me".into())),
            Change::Cell(4, Some("me".into())),
            Change::Cell(4, None),
            Change::Gatekeeper(Some(gatekeeper)),
        ]);
        drop(store);
        thread.join().unwrap();
        let (store, contents, thread) = Store::open(directory.path()).unwrap();
        let second = StoredGuest { progress: ended, ..guest(2) };
        assert_eq!(contents.guests, [guest(1), second]);
        assert_eq!((contents.last_id, contents.daemons), (3, 2));
        assert_eq!(contents.specs[&1], spec);
        assert_eq!(contents.owners["me"], owner);
        assert_eq!(contents.networks["blue"].number, 4);
        assert_eq!(contents.images.len(), 1);
        assert_eq!(contents.cells, BTreeMap::from([(3, "me".to_owned())]));
        assert_eq!(contents.gatekeeper, Some(gatekeeper));
        assert_eq!(contents.names.keys().collect::<Vec<_>>(), ["image"]);
        drop(store);
        thread.join().unwrap();
    }

    #[test]
    fn a_ticket_is_given_when_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _, _thread) = Store::open(directory.path()).unwrap();
        let ticket =
            store.write(vec![Change::Spec(1, Arc::new(GuestSpec::of("i"))), Change::Guests(vec![guest(7)])]);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(runtime.block_on(ticket.written()));
        // Another process would see it now, whatever becomes of this one.
        let other = Connection::open(directory.path().join("registry.db")).unwrap();
        let count: i64 = other.query_row("SELECT COUNT(*) FROM guests", [], |row| row.get(0)).unwrap();
        assert_eq!(count, 1);
    }

    #[test]
    fn a_registry_of_another_form_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let other = Connection::open(directory.path().join("registry.db")).unwrap();
        other.pragma_update(None, "user_version", 99).unwrap();
        drop(other);
        let refused = Store::open(directory.path()).map(drop).unwrap_err();
        assert!(refused.to_string().contains("has form 99"), "{refused}");
    }
}
