// WordPiece for words of printable ASCII: greedy, the longest piece first (Song et al. 2021 compare the ways to do it).
//
// BERT's normalisation changes nothing in such words but their case, and its pre-tokenizer cuts them at every character
// that is neither a letter nor a digit. Text between two white spaces that holds anything else, a control character, an
// accent or an added token, is left to the caller's tokenizer: neither step looks across white space.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace {

using Ids = py::array_t<std::int32_t, py::array::c_style>;

// A text of which this part or more is not plain goes to the caller's tokenizer as a whole.
constexpr std::size_t kMostlyOther = 4;

constexpr std::uint64_t kSeed = 0xcbf29ce484222325u;

std::uint64_t hashed(std::uint64_t hash, char byte) {
    return (hash ^ static_cast<unsigned char>(byte)) * 0x9e3779b97f4a7c15u;
}

// Pieces and their ids, by open addressing; at most half full.
class Pieces {
  public:
    explicit Pieces(const std::vector<std::pair<std::string, std::int32_t>>& pieces) {
        std::size_t size = 16;
        while (size < 2 * pieces.size()) size *= 2;
        slots_.resize(size);
        mask_ = size - 1;
        for (const auto& [text, id] : pieces) add(text, id);
    }

    std::size_t longest() const { return longest_; }

    // The id of a piece, or -1; `hash` is that of its bytes.
    std::int32_t find(const char* text, std::size_t length, std::uint64_t hash) const {
        const std::uint32_t mark = mark_of(hash, length);
        for (std::size_t place = place_of(hash);; place = (place + 1) & mask_) {
            const Slot& slot = slots_[place];
            if (slot.id < 0) return -1;
            if (slot.mark == mark && slot.length == length && !std::memcmp(bytes_.data() + slot.start, text, length))
                return slot.id;
        }
    }

  private:
    // Small, for most of the time is waiting for one that is not in the CPU's cache.
    struct Slot {
        std::uint32_t mark = 0;
        std::uint32_t start = 0;
        std::uint32_t length = 0;
        std::int32_t id = -1;
    };

    std::size_t place_of(std::uint64_t hash) const { return (hash ^ (hash >> 32)) & mask_; }

    static std::uint32_t mark_of(std::uint64_t hash, std::size_t length) {
        return static_cast<std::uint32_t>((hash >> 32) + length);
    }

    void add(const std::string& text, std::int32_t id) {
        std::uint64_t hash = kSeed;
        for (char byte : text) hash = hashed(hash, byte);
        std::size_t place = place_of(hash);
        while (slots_[place].id >= 0) place = (place + 1) & mask_;
        slots_[place] = {mark_of(hash, text.size()), static_cast<std::uint32_t>(bytes_.size()),
                         static_cast<std::uint32_t>(text.size()), id};
        bytes_ += text;
        if (bytes_.size() > UINT32_MAX) throw std::invalid_argument("the vocabulary is too large");
        longest_ = std::max(longest_, text.size());
    }

    std::vector<Slot> slots_;
    std::size_t mask_ = 0;
    std::size_t longest_ = 0;
    std::string bytes_;
};

// What is not plain: where it is in its text, and how many ids of the text stand before it.
struct Other {
    std::size_t begin;
    std::size_t end;
    std::size_t before;
};

struct Encoded {
    std::vector<std::int32_t> ids;
    std::vector<Other> others;
};

// The characters of a str, as Python keeps them.
struct Text {
    int kind;
    const void* data;
    std::size_t length;
};

enum class Kind : unsigned char { kWord, kSpace, kMark, kOther };

class WordPiece {
  public:
    WordPiece(const std::map<std::string, std::int32_t>& vocabulary, const std::string& prefix, std::int32_t unknown,
              std::size_t max_characters, bool lowercase, const std::vector<std::string>& added)
        : first_({vocabulary.begin(), vocabulary.end()}), inner_(without(prefix, vocabulary)), unknown_(unknown),
          max_characters_(max_characters) {
        if (max_characters > kLongest) throw std::invalid_argument("words may be too long");
        for (const auto& [text, id] : vocabulary)
            if (id < 0) throw std::invalid_argument("an id is negative");
        for (unsigned byte = 0; byte < 128; ++byte) {
            bool upper = byte >= 'A' && byte <= 'Z', lower = byte >= 'a' && byte <= 'z';
            bool space = byte == ' ' || byte == '\t' || byte == '\n' || byte == '\r';
            bool printable = byte > ' ' && byte < 127;
            kinds_[byte] = space                                            ? Kind::kSpace
                           : !printable                                     ? Kind::kOther
                           : upper || lower || (byte >= '0' && byte <= '9') ? Kind::kWord
                                                                            : Kind::kMark;
            small_[byte] = static_cast<char>(upper ? byte + ('a' - 'A') : byte);
            read_[byte] = lowercase ? small_[byte] : static_cast<char>(byte);
        }
        for (const std::string& token : added) add_token(token);
    }

    std::vector<Ids> encode(const py::sequence& texts, const py::function& others) const {
        std::vector<py::object> held;
        std::vector<Text> read;
        for (py::handle text : texts) {
            held.push_back(py::reinterpret_borrow<py::object>(text));
            read.push_back(characters_of(text));
        }
        std::vector<Encoded> encoded(read.size());
        {
            py::gil_scoped_release released;
            for (std::size_t index = 0; index < read.size(); ++index) encode_text(read[index], encoded[index]);
        }
        return joined(held, encoded, others);
    }

    bool is_plain(const py::sequence& texts) const {
        for (py::handle text : texts) {
            Text read = characters_of(text);
            if (read.kind != PyUnicode_1BYTE_KIND) return false;
            const auto* characters = static_cast<const std::uint8_t*>(read.data);
            for (std::size_t place = 0; place < read.length; ++place)
                if (kind_of(characters[place]) == Kind::kOther || is_added(characters, read.length, place))
                    return false;
        }
        return true;
    }

  private:
    static Text characters_of(py::handle text) {
        if (!PyUnicode_Check(text.ptr())) throw py::type_error("a text is no str");
        return {static_cast<int>(PyUnicode_KIND(text.ptr())), PyUnicode_DATA(text.ptr()),
                static_cast<std::size_t>(PyUnicode_GET_LENGTH(text.ptr()))};
    }

    static std::vector<std::pair<std::string, std::int32_t>> without(
        const std::string& prefix, const std::map<std::string, std::int32_t>& vocabulary) {
        std::vector<std::pair<std::string, std::int32_t>> inner;
        for (const auto& [text, id] : vocabulary)
            if (text.size() > prefix.size() && !text.compare(0, prefix.size(), prefix))
                inner.emplace_back(text.substr(prefix.size()), id);
        return inner;
    }

    void add_token(const std::string& token) {
        bool plain = !token.empty();
        std::string small;
        for (char byte : token) {
            auto character = static_cast<unsigned char>(byte);
            // A token with another character is found in no plain text.
            plain = plain && character < 128 && kinds_[character] != Kind::kOther;
            if (plain && kinds_[character] == Kind::kSpace)
                throw std::invalid_argument("an added token holds white space");
            if (plain) small += small_[character];
        }
        if (!plain) return;
        starts_[static_cast<unsigned char>(small[0])] = true;
        added_.push_back(small);
    }

    void encode_text(const Text& text, Encoded& out) const {
        if (text.kind == PyUnicode_1BYTE_KIND)
            encode_characters(static_cast<const std::uint8_t*>(text.data), text.length, out);
        else if (text.kind == PyUnicode_2BYTE_KIND)
            encode_characters(static_cast<const std::uint16_t*>(text.data), text.length, out);
        else encode_characters(static_cast<const std::uint32_t*>(text.data), text.length, out);
    }

    template <typename Character>
    Kind kind_of(Character character) const {
        return character < 128 ? kinds_[character] : Kind::kOther;
    }

    template <typename Character>
    void encode_characters(const Character* text, std::size_t length, Encoded& out) const {
        std::size_t not_plain = 0;
        out.ids.reserve(length / 4 + 1);
        for (std::size_t place = 0; place < length;) {
            if (kind_of(text[place]) == Kind::kSpace) {
                ++place;
                continue;
            }
            std::size_t begin = place, before = out.ids.size();
            if (encode_part(text, length, place, out.ids)) continue;
            while (place < length && kind_of(text[place]) != Kind::kSpace) ++place;
            out.ids.resize(before);
            out.others.push_back({begin, place, before});
            not_plain += place - begin;
        }
        if (not_plain * kMostlyOther >= length && not_plain) {
            out.ids.clear();
            out.others.assign(1, {0, length, 0});
        }
    }

    // Encode what is between two white spaces; false where it is not plain.
    template <typename Character>
    bool encode_part(const Character* text, std::size_t length, std::size_t& place,
                     std::vector<std::int32_t>& ids) const {
        while (place < length) {
            Kind kind = kind_of(text[place]);
            if (kind == Kind::kSpace) return true;
            if (kind == Kind::kOther || is_added(text, length, place)) return false;
            std::size_t end = place + 1;
            std::uint64_t hash = hashed(kSeed, read_[text[place]]);
            char word[kLongest];
            word[0] = read_[text[place]];
            if (kind == Kind::kWord)
                for (; end < length && kind_of(text[end]) == Kind::kWord; ++end) {
                    if (is_added(text, length, end)) return false;
                    char byte = read_[text[end]];
                    if (end - place < kLongest) word[end - place] = byte;
                    hash = hashed(hash, byte);
                }
            encode_word(word, end - place, hash, ids);
            place = end;
        }
        return true;
    }

    void encode_word(const char* word, std::size_t length, std::uint64_t hash, std::vector<std::int32_t>& ids) const {
        if (length > max_characters_) {
            ids.push_back(unknown_);
            return;
        }
        std::int32_t whole = first_.find(word, length, hash);
        if (whole >= 0) {
            ids.push_back(whole);
            return;
        }
        std::size_t before = ids.size();
        for (std::size_t start = 0; start < length;) {
            const Pieces& pieces = start ? inner_ : first_;
            std::size_t most = std::min(length - start, pieces.longest());
            std::uint64_t hashes[kLongest + 1];
            hashes[0] = kSeed;
            for (std::size_t size = 1; size <= most; ++size)
                hashes[size] = hashed(hashes[size - 1], word[start + size - 1]);
            std::int32_t id = -1;
            std::size_t size = most;
            for (; size && (id = pieces.find(word + start, size, hashes[size])) < 0; --size) {
            }
            if (id < 0) {
                ids.resize(before);
                ids.push_back(unknown_);
                return;
            }
            ids.push_back(id);
            start += size;
        }
    }

    // Whether an added token may begin here, in whatever case.
    template <typename Character>
    bool is_added(const Character* text, std::size_t length, std::size_t place) const {
        if (!starts_[static_cast<unsigned char>(small_[text[place]])]) return false;
        return std::any_of(added_.begin(), added_.end(), [&](const std::string& token) {
            if (token.size() > length - place) return false;
            for (std::size_t index = 0; index < token.size(); ++index) {
                Character character = text[place + index];
                if (character >= 128 || small_[character] != token[index]) return false;
            }
            return true;
        });
    }

    static std::vector<Ids> joined(const std::vector<py::object>& texts, const std::vector<Encoded>& encoded,
                                   const py::function& others) {
        py::list asked;
        for (std::size_t index = 0; index < encoded.size(); ++index)
            for (const Other& other : encoded[index].others) {
                PyObject* part = PyUnicode_Substring(texts[index].ptr(), static_cast<Py_ssize_t>(other.begin),
                                                     static_cast<Py_ssize_t>(other.end));
                if (part == nullptr) throw py::error_already_set();
                asked.append(py::reinterpret_steal<py::str>(part));
            }
        std::vector<Ids> given;
        if (!asked.empty()) given = others(asked).cast<std::vector<Ids>>();
        if (given.size() != asked.size()) throw std::invalid_argument("not one list of ids for each text");
        std::vector<Ids> result;
        auto next = given.begin();
        for (const Encoded& one : encoded) {
            std::vector<std::int32_t> ids;
            std::size_t from = 0;
            for (const Other& other : one.others) {
                ids.insert(ids.end(), one.ids.data() + from, one.ids.data() + other.before);
                ids.insert(ids.end(), next->data(), next->data() + next->size());
                from = other.before;
                ++next;
            }
            const std::vector<std::int32_t>& rest = one.others.empty() ? one.ids : ids;
            if (!one.others.empty()) ids.insert(ids.end(), one.ids.data() + from, one.ids.data() + one.ids.size());
            result.emplace_back(static_cast<py::ssize_t>(rest.size()), rest.data());
        }
        return result;
    }

    // No longer word is looked up.
    static constexpr std::size_t kLongest = 256;

    Pieces first_;
    Pieces inner_;
    std::int32_t unknown_;
    std::size_t max_characters_;
    std::array<Kind, 128> kinds_{};
    std::array<char, 128> small_{};
    std::array<char, 128> read_{};
    std::array<bool, 128> starts_{};
    std::vector<std::string> added_;
};

}  // namespace

PYBIND11_MODULE(_compiled, module) {
    module.doc() = "WordPiece over plain text";
    py::class_<WordPiece>(module, "WordPiece")
        .def(py::init<const std::map<std::string, std::int32_t>&, const std::string&, std::int32_t, std::size_t, bool,
                      const std::vector<std::string>&>(),
             py::arg("vocabulary"), py::kw_only(), py::arg("prefix"), py::arg("unknown"), py::arg("max_characters"),
             py::arg("lowercase"), py::arg("added"))
        .def("encode", &WordPiece::encode, py::arg("texts"), py::arg("others"))
        .def("is_plain", &WordPiece::is_plain, py::arg("texts"));
}
