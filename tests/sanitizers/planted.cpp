// Deliberate bugs, one per argument, to check that the sanitizers report them through the emulated instructions.

#include <cstdlib>
#include <memory>

#include "emulated.h"

using namespace rerankd;

int main(int, char** arguments) {
    alignas(64) float numbers[32] = {};
    alignas(64) std::int16_t shorts[64] = {};
    const std::unique_ptr<float[]> heap(new float[16]());
    Integers sums = each<std::int32_t>([](std::size_t) { return 2147483647; });
    const Integers ones = each<std::int32_t>([](std::size_t) { return 1; });
    switch (std::atoi(arguments[1])) {
        case 1: store(numbers, load(heap.get() + 1)); break;
        case 2: store(heap.get() + 1, broadcast(0)); break;
        case 3: store_shorts(shorts, load_shorts(shorts + 4)); break;
        case 4: dot(sums, ones, bits<Weights>(ones)); break;
        case 5: store(numbers, load_first(heap.get() + 1, 16, broadcast(0))); break;
        default: store(numbers, load_first(heap.get() + 1, 15, broadcast(0))); break;
    }
    return 0;
}
