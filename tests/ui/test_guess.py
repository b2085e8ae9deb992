"""A guess entered in a real browser: what answers it is hidden until then."""

from playwright.sync_api import expect

CELLS = (
    "import kdkit as kd\nguess = kd.predict('KD minus baseline')",
    "from IPython.display import HTML\nwith guess:\n    print('a secret')\n"
    "    display(HTML('<em>a picture</em>'))\n    guess.compare(1.5)",
)


def test_the_answer_is_hidden_until_a_guess_is_entered(open_notebook):
    nb = open_notebook("guess.ipynb", *CELLS)
    nb.run_all()
    hidden, line = nb.find("kd-guess-hidden"), nb.find("kd-guess-line")
    box, note = nb.find("kd-guess-box").locator("input"), nb.find("kd-guess-note")
    secrets = [nb.panel.get_by_text(text, exact=True) for text in ("a secret", "a picture")]
    expect(hidden).to_be_visible()
    expect(box).to_have_value("")
    for secret in (*secrets, line):
        expect(secret).to_have_count(1)
        expect(secret).not_to_be_visible()
    nb.shoot("guess_before")
    box.fill("a lot")
    nb.find("kd-guess-button").click()
    expect(note).to_contain_text("a number from -10 to 10 is expected; 'a lot' was entered")
    expect(hidden).to_be_visible()
    box.fill("-0.52")
    box.press("Enter")
    for secret in (*secrets, line):
        expect(secret).to_be_visible()
    expect(hidden).not_to_be_visible()
    expect(note).to_contain_text("you said -0.50 points")
    expect(line).to_contain_text("2.00 points apart, in the other direction")
    box.fill("1")
    nb.find("kd-guess-button").click()
    expect(line).to_contain_text("0.50 points apart, in the same direction")
    nb.run_all()  # the cells again: nothing is hidden now, and the guess is still there
    expect(nb.find("kd-guess-hidden")).to_have_count(0)
    expect(note).to_contain_text("you said +1.00 points")
    expect(secrets[0]).to_be_visible()
    nb.look()
    nb.shoot("guess_after")
