//! `vmm top`: what the busiest guests use, live, over as many guests as there are.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context;
use foraker_api::{Client, Counters, Filter, Gatekeeper, Guest};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table};

use crate::args::clients::Top;
use crate::clients::{connect, names};
use crate::format::{bytes, colours, inert};
use crate::stats::{Meter, PERIOD, Usage};

/// How often the list of guests itself is read again: names change seldom.
const NAMES_EVERY: u32 = 5;

/// By what guests are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Cpu,
    Memory,
    Network,
    Exits,
    Id,
}

/// What is shown.
struct Screen {
    order: Order,
    /// Part of the name of those that are shown.
    search: String,
    /// The search is being written.
    writing: bool,
    /// Guests above the first that is shown.
    above: usize,
    used: Vec<Usage>,
    gatekeeper: Gatekeeper,
    cells: usize,
    colours: bool,
    /// How long it took to ask.
    asked_ms: u128,
    problem: Option<String>,
}

/// Shows it until somebody has seen enough.
pub(crate) fn run(top: &Top) -> anyhow::Result<u8> {
    let mut client = connect(&top.socket)?;
    let mut screen = Screen {
        order: Order::Cpu,
        search: String::new(),
        writing: false,
        above: 0,
        used: Vec::new(),
        gatekeeper: client.get("/gatekeeper")?,
        cells: client.cells()?.len(),
        colours: colours(&std::io::stdout()),
        asked_ms: 0,
        problem: None,
    };
    let mut terminal = ratatui::try_init().context("top needs a terminal: see `vmm stats --no-stream`")?;
    let shown = show(&mut terminal, &mut client, &mut screen);
    ratatui::restore();
    shown.map(|()| 0)
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    client: &mut Client,
    screen: &mut Screen,
) -> anyhow::Result<()> {
    let (mut meter, mut guests, mut look) = (Meter::default(), BTreeMap::new(), 0);
    loop {
        let since = Instant::now();
        let asked = ask(client, screen, &mut meter, &mut guests, look % NAMES_EVERY == 0);
        screen.problem = asked.err().map(|e| format!("{e:#}"));
        screen.asked_ms = since.elapsed().as_millis();
        look += 1;
        terminal.draw(|frame| screen.draw(frame))?;
        // The first figures are there soon.
        let until = since + if look == 1 { PERIOD / 4 } else { PERIOD };
        while event::poll(until.saturating_duration_since(Instant::now()))? {
            if let Event::Key(key) = event::read()?
                && key.kind == KeyEventKind::Press
            {
                let control = key.modifiers.contains(KeyModifiers::CONTROL);
                if control && key.code == KeyCode::Char('c') || screen.press(key.code) {
                    return Ok(());
                }
            }
            terminal.draw(|frame| screen.draw(frame))?;
        }
    }
}

fn ask(
    client: &mut Client,
    screen: &mut Screen,
    meter: &mut Meter,
    guests: &mut BTreeMap<u64, Guest>,
    with_names: bool,
) -> anyhow::Result<()> {
    if with_names {
        *guests = names(client, &Filter::default())?;
    }
    let now: Vec<Counters> = client.get("/stats")?;
    screen.used = meter.look(now, &|id| {
        Some(guests.get(&id).map_or_else(|| (id.to_string(), 0), |g| (inert(&g.name), g.memory)))
    });
    screen.gatekeeper = client.get("/gatekeeper")?;
    Ok(())
}

impl Screen {
    /// A key was pressed. True when that is enough.
    fn press(&mut self, key: KeyCode) -> bool {
        if self.writing {
            match key {
                KeyCode::Esc => (self.writing, self.search) = (false, String::new()),
                KeyCode::Enter => self.writing = false,
                KeyCode::Backspace => drop(self.search.pop()),
                KeyCode::Char(c) => self.search.push(c),
                _ => {}
            }
            self.above = 0;
            return false;
        }
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('c') => self.order = Order::Cpu,
            KeyCode::Char('m') => self.order = Order::Memory,
            KeyCode::Char('n') => self.order = Order::Network,
            KeyCode::Char('e') => self.order = Order::Exits,
            KeyCode::Char('i') => self.order = Order::Id,
            KeyCode::Char('/') => self.writing = true,
            KeyCode::Down | KeyCode::Char('j') => self.above += 1,
            KeyCode::Up | KeyCode::Char('k') => self.above = self.above.saturating_sub(1),
            KeyCode::PageDown => self.above += 20,
            KeyCode::PageUp => self.above = self.above.saturating_sub(20),
            KeyCode::Home => self.above = 0,
            _ => {}
        }
        false
    }

    /// Those that are shown, in their order.
    fn chosen(&self) -> Vec<&Usage> {
        let mut chosen: Vec<&Usage> = self.used.iter().filter(|u| u.name.contains(&self.search)).collect();
        let key = |u: &Usage| match self.order {
            Order::Cpu => u.cpu,
            Order::Memory => u.resident as f64,
            Order::Network => u.rx_bytes + u.tx_bytes,
            Order::Exits => u.exits,
            // The least first.
            Order::Id => -(u.id as f64),
        };
        chosen.sort_by(|a, b| key(b).total_cmp(&key(a)).then(a.id.cmp(&b.id)));
        chosen
    }

    fn style(&self, style: Style) -> Style {
        if self.colours { style } else { Style::new() }
    }

    fn draw(&mut self, frame: &mut Frame) {
        let [head, body, foot] =
            Layout::vertical([Constraint::Length(4), Constraint::Min(1), Constraint::Length(1)])
                .areas(frame.area());
        frame.render_widget(Paragraph::new(self.head()), head);
        let rows = usize::from(body.height).saturating_sub(1);
        let chosen = self.chosen();
        let above = self.above.min(chosen.len().saturating_sub(rows));
        let table = self.table(chosen.into_iter().skip(above).take(rows));
        frame.render_widget(table, body);
        self.above = above;
        let text = match &self.problem {
            Some(problem) => problem.clone(),
            None if self.writing => format!("/{}_", self.search),
            None => "q quit  sort: c cpu  m memory  n network  e exits  i id   / search   arrows, page keys"
                .to_owned(),
        };
        frame.render_widget(Paragraph::new(text).style(self.style(Style::new().fg(Color::DarkGray))), foot);
    }

    fn head(&self) -> Vec<Line<'static>> {
        let g = &self.gatekeeper;
        let states: Vec<_> =
            g.states.iter().filter(|(_, n)| **n > 0).map(|(state, n)| format!("{n} {state}")).collect();
        let sum = |pick: fn(&Usage) -> f64| self.used.iter().map(pick).sum::<f64>();
        let amount = |has: Option<u64>, most: Option<u64>| {
            format!("{} of {}", bytes(has.unwrap_or(0)), most.map_or_else(|| "no bound".to_owned(), bytes))
        };
        let bold = Style::new().add_modifier(Modifier::BOLD);
        vec![
            Line::styled(format!("guests    {}", states.join(", ")), bold),
            Line::raw(format!(
                "use       {:.2} processors   {} resident   {} allocated   {} cells",
                sum(|u| u.cpu) / 100.0,
                bytes(sum(|u| u.resident as f64) as u64),
                amount(g.has.memory, g.settings.budget.memory),
                self.cells
            )),
            Line::raw(format!(
                "network   {}/s in, {}/s out   {:.0} exits/s   {} waiting, {} refused   asked in {} ms",
                bytes(sum(|u| u.rx_bytes) as u64),
                bytes(sum(|u| u.tx_bytes) as u64),
                sum(|u| u.exits),
                g.waiting,
                g.refused,
                self.asked_ms
            )),
            Line::raw(""),
        ]
    }

    fn table<'a>(&self, shown: impl Iterator<Item = &'a Usage>) -> Table<'static> {
        let right = |text: String| Cell::from(Line::from(text).right_aligned());
        let rows = shown.map(|u| {
            let row = Row::new([
                right(u.id.to_string()),
                Cell::from(u.name.clone()),
                right(format!("{:.1}", u.cpu)),
                right(bytes(u.resident)),
                right(bytes(u.memory)),
                right(bytes(u.rx_bytes as u64)),
                right(bytes(u.tx_bytes as u64)),
                right(format!("{:.0}", u.exits)),
                right(u.dropped.to_string()),
            ]);
            let busy = if u.cpu >= 50.0 { Style::new().fg(Color::Yellow) } else { Style::new() };
            row.style(self.style(busy))
        });
        let widths = [
            Constraint::Length(8),
            Constraint::Fill(1),
            Constraint::Length(7),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(9),
        ];
        let heads = [
            ("ID", Some(Order::Id)),
            ("NAME", None),
            ("CPU%", Some(Order::Cpu)),
            ("RESIDENT", Some(Order::Memory)),
            ("MEMORY", None),
            ("IN/s", Some(Order::Network)),
            ("OUT/s", Some(Order::Network)),
            ("EXITS/s", Some(Order::Exits)),
            ("DROPPED", None),
        ];
        let head = heads.map(|(text, order)| {
            let line = Line::from(text);
            let line = if text == "NAME" { line } else { line.right_aligned() };
            let style = Style::new().add_modifier(Modifier::BOLD);
            Cell::from(line).style(if order == Some(self.order) {
                style.add_modifier(Modifier::UNDERLINED)
            } else {
                style
            })
        });
        Table::new(rows, widths).header(Row::new(head))
    }
}
