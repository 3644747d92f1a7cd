// Checks csrc/cpu/cache_layout.h on the host: the forms in which CUDA writes and reads rows of INT6
// against the form that is plain, an element at a time.
#include "cpu/cache_layout.h"

#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

using namespace moela;

namespace {

void require(bool condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "cache_layout: %s\n", what);
  exit(1);
}

void check(int r, int dr, std::mt19937& random) {
  const int short_at = int6_short_at(r, dr);
  const int64_t bytes = cache_row_bytes(MOELA_INT6, r, dr);
  const int64_t key_at = cache_key_at(MOELA_INT6, r, dr);
  require(bytes == (r + dr) * 6 / 8 && key_at % 4 == 0, "six bits on average, the key aligned");

  std::uniform_real_distribution<float> uniform(-33, 33);
  std::vector<float> x(r);
  for (float& value : x) value = uniform(random);
  // Each bit of the latents' bytes belongs to one latent, and none of the key's to any.
  std::vector<int> uses(bytes * 8);
  for (int i = 0; i < r; i++) {
    const Int6Place place = int6_place(i, short_at);
    for (int bit = 0; bit < 4; bit++) uses[place.low * 8 + place.low_shift + bit]++;
    for (int bit = 0; bit < (place.is_short ? 1 : 2); bit++) {
      uses[place.high * 8 + place.high_shift + bit]++;
    }
  }
  for (int64_t i = 0; i < bytes * 8; i++) {
    require(uses[i] == (i < key_at * 8), "every bit before the key holds one latent's");
  }

  // A thread a group, in any order, leaves what one element after another leaves.
  std::vector<uint8_t> row(bytes, 0xcd), plain(bytes, 0);
  for (int group = int6_groups(r, dr) - 1; group >= 0; group--) {
    int6_put_group(row.data(), group, short_at, x.data(), 0.5f);
  }
  for (int i = 0; i < r; i++) {
    const float steps = cache_steps(x[i], 0.5f, 31);
    int6_put(plain.data(), int6_place(i, short_at), int6_code(steps, i >= short_at));
  }
  for (int64_t i = 0; i < bytes; i++) {
    require(row[i] == (i < key_at ? plain[i] : 0xcd), "groups write what elements do");
  }

  // Eight at a time read what one at a time reads, of bytes of any kind.
  std::vector<uint32_t> words(bytes / 4);
  for (uint32_t& word : words) word = static_cast<uint32_t>(random());
  const uint8_t* from = reinterpret_cast<const uint8_t*>(words.data());
  for (int i = 0; i < r; i += 8) {
    const bool is_short = i >= short_at;
    uint32_t codes[2];
    int6_codes(int6_load(words.data(), i, short_at, is_short), i, short_at, is_short, codes[0],
               codes[1]);
    for (int j = 0; j < 8; j++) {
      const int q = static_cast<int>(codes[j / 4] >> 8 * (j % 4) & 255) - 32;
      require(q == int6_get(from, int6_place(i + j, short_at)), "eights read what elements do");
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(1);
  check(512, 64, random);
  check(64, 16, random);
  check(32, 16, random);
  check(48, 16, random);
  check(512, 32, random);
  check(16 * 21, 48, random);
  return 0;
}
