//! What the keys do: pure, so that it can be tried without a terminal.

use crate::logic::fleet::{Key, Order};

/// Longest filter.
const FILTER_CHARS_MAX: usize = 64;

/// A key, free of the terminal library's types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Press {
    /// A character.
    Char(char),
    /// Enter.
    Enter,
    /// Escape.
    Escape,
    /// Backspace.
    Back,
    /// One up.
    Up,
    /// One down.
    Down,
    /// A page up.
    PageUp,
    /// A page down.
    PageDown,
    /// To the first.
    Home,
    /// To the last.
    End,
    /// Ctrl and C, which the terminal makes no signal of here.
    Interrupt,
}

/// What is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Page {
    /// All workers.
    #[default]
    Table,
    /// One of them.
    Detail,
    /// The keys.
    Help,
}

/// What is to be done beside showing something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    None,
    /// End.
    Quit,
    /// Take a worker out of the list.
    Forget(Key),
}

/// What the person at the terminal has chosen.
#[derive(Debug, Clone, Default)]
pub struct Ui {
    /// What is shown.
    pub page: Page,
    /// Order of the rows.
    pub order: Order,
    /// Words that rows must have.
    pub filter: String,
    /// The filter is being typed.
    pub typing: bool,
    /// The worker that is pointed at, wherever it stands.
    pub selected: Option<Key>,
    /// First row that is shown.
    pub first: usize,
    /// Rows that fit, as of the last drawing.
    pub fit: usize,
}

impl Ui {
    /// A key was pressed while these rows were there.
    pub fn press(&mut self, key: Press, rows: &[Key]) -> Wish {
        if key == Press::Interrupt {
            return Wish::Quit;
        }
        if self.typing {
            self.typed(key);
            return Wish::None;
        }
        match (self.page, key) {
            (_, Press::Char('q')) => return Wish::Quit,
            (Page::Help, _) => self.page = Page::Table,
            (_, Press::Char('?')) => self.page = Page::Help,
            (Page::Detail, Press::Enter | Press::Escape | Press::Back) => self.page = Page::Table,
            (Page::Table, Press::Escape) => self.filter.clear(),
            (Page::Table, Press::Enter) => {
                self.point_somewhere(rows);
                if self.selected.is_some() {
                    self.page = Page::Detail;
                }
            }
            (Page::Table, Press::Char('/')) => self.typing = true,
            (_, Press::Char('s')) => self.order = self.order.next(),
            (_, Press::Char('x')) => {
                let forgotten = self.selected.take();
                self.page = Page::Table;
                return forgotten.map_or(Wish::None, Wish::Forget);
            }
            (_, Press::Up | Press::Char('k')) => self.move_by(-1, rows),
            (_, Press::Down | Press::Char('j')) => self.move_by(1, rows),
            (_, Press::PageUp) => self.move_by(-self.page_rows(), rows),
            (_, Press::PageDown) => self.move_by(self.page_rows(), rows),
            (_, Press::Home | Press::Char('g')) => self.selected = rows.first().cloned(),
            (_, Press::End | Press::Char('G')) => self.selected = rows.last().cloned(),
            _ => {}
        }
        Wish::None
    }

    /// Where the selected worker stands among the rows.
    pub fn at(&self, rows: &[Key]) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        rows.iter().position(|key| key == selected)
    }

    /// So many rows are shown now: the selected one shall be among them.
    pub fn fits(&mut self, fit: usize, rows: &[Key]) {
        self.fit = fit;
        if let Some(at) = self.at(rows) {
            self.first = self.first.min(at).max((at + 1).saturating_sub(fit));
        }
        self.first = self.first.min(rows.len().saturating_sub(fit));
    }

    fn typed(&mut self, key: Press) {
        match key {
            Press::Enter => self.typing = false,
            Press::Escape => {
                self.typing = false;
                self.filter.clear();
            }
            Press::Back => {
                self.filter.pop();
            }
            Press::Char(c) if self.filter.chars().count() < FILTER_CHARS_MAX => self.filter.push(c),
            _ => {}
        }
    }

    fn page_rows(&self) -> isize {
        isize::try_from(self.fit.max(1)).unwrap_or(1)
    }

    fn move_by(&mut self, rows_down: isize, rows: &[Key]) {
        let to = match self.at(rows) {
            Some(at) => at.saturating_add_signed(rows_down),
            None => 0,
        };
        self.selected = rows.get(to.min(rows.len().saturating_sub(1))).cloned();
    }

    fn point_somewhere(&mut self, rows: &[Key]) {
        if self.at(rows).is_none() {
            self.selected = rows.get(self.first).or(rows.first()).cloned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(n: u32) -> Vec<Key> {
        (1..=n).map(|pid| ("host".to_owned(), pid)).collect()
    }

    fn pointed(ui: &Ui) -> u32 {
        ui.selected.as_ref().map_or(0, |key| key.1)
    }

    #[test]
    fn the_selection_stays_with_the_worker_and_inside_the_rows() {
        let (mut ui, few) = (Ui::default(), rows(5));
        ui.fits(3, &few);
        for (key, pid, first) in [
            (Press::Down, 1, 0),
            (Press::Down, 2, 0),
            (Press::PageDown, 5, 2),
            (Press::Down, 5, 2),
            (Press::Char('k'), 4, 2),
            (Press::PageUp, 1, 0),
            (Press::Up, 1, 0),
            (Press::Char('G'), 5, 2),
            (Press::Home, 1, 0),
        ] {
            assert_eq!(ui.press(key, &few), Wish::None);
            ui.fits(3, &few);
            assert_eq!((pointed(&ui), ui.first), (pid, first), "{key:?}");
        }
        let turned: Vec<Key> = few.iter().rev().cloned().collect();
        ui.fits(3, &turned);
        assert_eq!((pointed(&ui), ui.first), (1, 2));
        ui.fits(3, &[]);
        assert_eq!((ui.first, ui.at(&[])), (0, None));
        ui.press(Press::Down, &[]);
        assert_eq!(ui.selected, None);
    }

    #[test]
    fn a_filter_is_typed_and_taken_back_and_keys_are_letters_meanwhile() {
        let (mut ui, few) = (Ui::default(), rows(2));
        for c in "/qs?x".chars() {
            assert_eq!(ui.press(Press::Char(c), &few), Wish::None);
        }
        assert_eq!((ui.filter.as_str(), ui.typing), ("qs?x", true));
        ui.press(Press::Back, &few);
        ui.press(Press::Enter, &few);
        assert_eq!(
            (ui.filter.as_str(), ui.typing, ui.order),
            ("qs?", false, Order::Health)
        );
        ui.press(Press::Escape, &few);
        assert_eq!(ui.filter, "");
        ui.press(Press::Char('/'), &few);
        for _ in 0..100 {
            ui.press(Press::Char('ü'), &few);
        }
        assert_eq!(ui.filter.chars().count(), FILTER_CHARS_MAX);
        assert_eq!(ui.press(Press::Interrupt, &few), Wish::Quit);
    }

    #[test]
    fn pages_lead_back_to_the_table() {
        let (mut ui, few) = (Ui::default(), rows(2));
        ui.press(Press::Enter, &[]);
        assert_eq!(ui.page, Page::Table);
        ui.press(Press::Enter, &few);
        assert_eq!((ui.page, pointed(&ui)), (Page::Detail, 1));
        ui.press(Press::Down, &few);
        assert_eq!((ui.page, pointed(&ui)), (Page::Detail, 2));
        ui.press(Press::Char('?'), &few);
        assert_eq!(ui.page, Page::Help);
        ui.press(Press::Char('s'), &few);
        assert_eq!((ui.page, ui.order), (Page::Table, Order::Health));
        ui.press(Press::Char('s'), &few);
        assert_eq!(ui.order, Order::Host);
        assert_eq!(ui.press(Press::Char('x'), &few), Wish::Forget(("host".into(), 2)));
        assert_eq!(ui.press(Press::Char('x'), &few), Wish::None);
        assert_eq!(ui.press(Press::Char('q'), &few), Wish::Quit);
    }
}
